"""Adds Debian's dropbear, a small ssh server, and the libraries it needs to a root file system."""

import re
import shutil
from pathlib import Path

from nexus.images import tools
from nexus.images.debs import Packages

PACKAGES = (
    "dropbear-bin",
    "libc6",
    "libcrypt1",
    "libgmp10",
    "libtomcrypt1",
    "libtommath1",
    "zlib1g",
)
SERVER = "usr/sbin/dropbear"
LOADER = "lib64/ld-linux-x86-64.so.2"
LIBRARIES = "lib/x86_64-linux-gnu"
"""Where the loader looks without being told; the packages have theirs here and under usr."""


def add(tree: Path, work: Path, packages: Packages) -> None:
    """Puts the server and its libraries into ``tree``; packages are unpacked under ``work``.

    Raises ToolMissing or BuildError.
    """
    for name in PACKAGES:
        packages.unpack(name, work)
    # The packages' own loader says which libraries the server needs; nothing of it runs.
    search = f"{work / LIBRARIES}:{work / 'usr' / LIBRARIES}"
    listed = tools.run(
        [str(work / LOADER), "--library-path", search, "--list", str(work / SERVER)]
    ).decode()
    needed = re.findall(r"^\s*(lib\S+) => (\S+) \(", listed, re.MULTILINE)
    _put(work / SERVER, tree / SERVER, 0o755)
    _put(work / LOADER, tree / LOADER, 0o755)
    for name, source in needed:
        _put(Path(source), tree / LIBRARIES / name, 0o644)
    (tree / "etc/dropbear").mkdir(mode=0o700)


def _put(source: Path, dest: Path, permissions: int) -> None:
    dest.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, dest)
    dest.chmod(permissions)
