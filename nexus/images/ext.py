"""Looking at ext2, ext3 and ext4 file systems in files. Source: ext4(5), the kernel's ext4 docs."""

import os
import struct
import subprocess
from pathlib import Path

from nexus.images import confined
from nexus.images.errors import BadImage

_SUPERBLOCK_AT = 1024
_SUPERBLOCK_BYTES = 1024
_MAGIC_AT = 0x38
_MAGIC = b"\x53\xef"
_INCOMPATIBLE_AT = 0x60
_IS_64_BIT = 0x80
_BLOCKS_HIGH_AT = 0x150
_DAMAGED = 4
"""e2fsck(8): the lowest exit status that means errors were left, or the check itself failed."""
_SHOWN_LINES = 3


def check(descriptor: int, path: Path) -> None:
    """Raises BadImage if the file is an ext file system that is cut off or damaged.

    Nothing is written: ``e2fsck -n``. Other file systems and partitioned disks pass unread.
    Raises ToolMissing without e2fsck.
    """
    head = os.pread(descriptor, _SUPERBLOCK_BYTES, _SUPERBLOCK_AT)
    if head[_MAGIC_AT : _MAGIC_AT + 2] != _MAGIC or len(head) < _SUPERBLOCK_BYTES:
        return
    wanted = _size(head)
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


def _size(superblock: bytes) -> int:
    """The bytes a file system takes up, by its superblock."""
    (low,) = struct.unpack_from("<I", superblock, 4)
    (shift,) = struct.unpack_from("<I", superblock, 0x18)
    (incompatible,) = struct.unpack_from("<I", superblock, _INCOMPATIBLE_AT)
    (high,) = struct.unpack_from("<I", superblock, _BLOCKS_HIGH_AT)
    if shift > 6:
        raise BadImage("the ext file system's superblock is damaged", "give another image")
    blocks = low | (high << 32 if incompatible & _IS_64_BIT else 0)
    return int(blocks << (10 + shift))


def _problems(output: bytes, path: Path) -> str:
    """The lines that tell what is wrong, without e2fsck's banner, passes and our own path."""
    lines = output.decode(errors="replace").replace(str(path), "the image").splitlines()
    told = [
        line.strip()
        for line in lines
        if line.strip() and not line.startswith(("e2fsck ", "Pass ", "Warning"))
    ]
    return "; ".join(told[:_SHOWN_LINES])[:500]
