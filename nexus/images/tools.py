"""Running the programs that image builds need."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from nexus.images.errors import BuildError, ToolMissing

PACKAGE_OF = {
    "apt-get": "apt",
    "debugfs": "e2fsprogs",
    "dpkg-deb": "dpkg",
    "e2fsck": "e2fsprogs",
    "gcc": "gcc libc6-dev",
    "gzip": "gzip",
    "lz4": "lz4",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "prlimit": "util-linux",
    "qemu-img": "qemu-utils",
    "resize2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "unshare": "util-linux",
    "xz": "xz-utils",
    "zstd": "zstd",
}
"""The Debian package that brings each program."""

TAIL_LINES = 8


def find(program: str) -> str:
    """The path of a program. Raises ToolMissing with the package that has it."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        raise ToolMissing(program, PACKAGE_OF.get(program, program))
    return found


def run(
    arguments: Sequence[str],
    *,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 600,
    suggestion: str = "",
    accept: Sequence[int] = (0,),
) -> bytes:
    """Runs a program to its end and returns its standard output. ``accept``: statuses that are
    no failure.

    Raises ToolMissing, or BuildError with the last lines it wrote to standard error.
    """
    command = [find(arguments[0]), *arguments[1:]]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            env=environment,
            capture_output=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as slow:
        raise BuildError(
            f"{_name(arguments)} did not end within {timeout_s:.0f} s",
            suggestion or "try again when the machine is less busy",
        ) from slow
    if done.returncode not in accept:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-TAIL_LINES:]
        raise BuildError(
            f"{_name(arguments)} failed with status {done.returncode}: " + "; ".join(said),
            suggestion or f"run it by hand to see more: {' '.join(arguments)}",
        )
    return done.stdout


def _name(arguments: Sequence[str]) -> str:
    """The program that was meant: what comes after the last ``--`` of those that start others."""
    rest = list(arguments)
    while rest[0].endswith(("/setpriv", "/prlimit")) and "--" in rest:
        rest = rest[rest.index("--") + 1 :]
    return Path(rest[0]).name
