"""Growing an ext4 file system in a file, without mounting it.

Fields of the superblock: Documentation/filesystems/ext4/super.rst of the Linux kernel.
"""

import struct
from pathlib import Path

from nexus.images import tools

SUPERBLOCK = 1024
MAGIC = 0xEF53
WIDE = 0x80
"""``INCOMPAT_64BIT``: the number of blocks has an upper half."""
TAIL = 8 << 20
"""resize2fs leaves out a last group of blocks that would hold little but its own tables."""


def size_of(file: Path) -> int | None:
    """The size of the file system in bytes, or None when it is not ext2, 3 or 4."""
    with file.open("rb") as disk:
        disk.seek(SUPERBLOCK)
        head = disk.read(1024)
    if len(head) < 1024 or struct.unpack_from("<H", head, 56)[0] != MAGIC:
        return None
    (blocks,) = struct.unpack_from("<I", head, 4)
    (log_size,) = struct.unpack_from("<I", head, 24)
    (incompatible,) = struct.unpack_from("<I", head, 96)
    if incompatible & WIDE:
        blocks |= struct.unpack_from("<I", head, 336)[0] << 32
    return int(blocks << (10 + min(log_size, 6)))


def fills(file: Path, size: int) -> bool:
    """Whether growing to ``size`` bytes would change nothing: it is so large, or not ext4."""
    have = size_of(file)
    return have is None or have + TAIL >= size


def grow(file: Path) -> None:
    """Makes the file system as large as its file; one that is not ext4 stays as it is.

    Raises ToolMissing or BuildError. Cut off, the file system may need a check: work on a copy.
    """
    if fills(file, file.stat().st_size):
        return
    hint = "leave the root's size out, and grow its file system inside the guest"
    # 1: errors were corrected. A file system that was not unmounted is such a case.
    tools.run(["e2fsck", "-f", "-p", str(file)], accept=(0, 1), suggestion=hint)
    tools.run(["resize2fs", str(file)], suggestion=hint)
