"""Checking ext2, ext3 and ext4 file systems in files."""

import os
import subprocess
from pathlib import Path

from nexus.images import confined, ext4
from nexus.images.errors import BadImage

_DAMAGED = 4
"""e2fsck(8): the lowest exit status that means errors were left, or the check itself failed."""
_SHOWN_LINES = 3


def check(descriptor: int, path: Path) -> None:
    """Raises BadImage if the file is an ext file system that is cut off or damaged.

    Nothing is written: ``e2fsck -n``. Other file systems and partitioned disks pass unread.
    Raises ToolMissing without e2fsck.
    """
    wanted = ext4.size_of(path)
    if wanted is None:
        return
    length = os.fstat(descriptor).st_size
    if length < wanted:
        raise BadImage(
            f"the file system is cut off: it has {wanted} bytes, the file only {length}",
            "copy the whole image again",
        )
    try:
        done = subprocess.run(
            confined.command("e2fsck", "-n", "-f", str(path)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=confined.TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadImage(
            f"checking the file system took longer than {confined.TIMEOUT_S:.0f} s", "shrink it"
        ) from None
    if done.returncode >= _DAMAGED or done.returncode < 0:
        raise BadImage(
            f"the ext file system is damaged: {_problems(done.stdout, path)}",
            "repair the file, then give it again: e2fsck -fy FILE",
        )


def _problems(output: bytes, path: Path) -> str:
    """The lines that tell what is wrong, without e2fsck's banner, passes and our own path."""
    lines = output.decode(errors="replace").replace(str(path), "the image").splitlines()
    told = [
        line.strip()
        for line in lines
        if line.strip() and not line.startswith(("e2fsck ", "Pass ", "Warning"))
    ]
    return "; ".join(told[:_SHOWN_LINES])[:500]
