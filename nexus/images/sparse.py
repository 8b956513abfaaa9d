"""Copying files without their holes, or without copying at all where the file system can share."""

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 20
BLOCK = 512
"""The unit of ``st_blocks`` (stat(2)), whatever the file system's own is."""
FICLONE = 0x40049409
"""The request of ioctl_ficlone(2); Python's fcntl has no name for it."""

CANNOT_SHARE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM}
)

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
# <linux/falloc.h>; Python has only posix_fallocate, which makes no holes.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def clone(source: int, dest: int) -> None:
    """Makes the empty file ``dest`` equal to ``source``: shared blocks, else data without holes.

    Both are open descriptors; positions do not matter. Raises OSError.
    """
    try:
        share(dest, source)
    except OSError as failed:
        if failed.errno not in CANNOT_SHARE:
            raise
        copy(source, dest)


def share(dest: int, source: int) -> None:
    """Makes ``dest`` the blocks of ``source``, which both have until one is written to.

    Raises OSError, of ``CANNOT_SHARE`` where the file system has no such thing.
    """
    fcntl.ioctl(dest, FICLONE, source)


def clone_file(source: Path, dest: Path) -> None:
    """The same for files by their paths; ``dest`` must not exist. Raises OSError."""
    with source.open("rb") as old, dest.open("xb") as new:
        clone(old.fileno(), new.fileno())


def copy(source: int, dest: int) -> None:
    """Copies the data of ``source`` into the empty file ``dest`` and leaves holes as holes."""
    os.ftruncate(dest, os.fstat(source).st_size)
    overlay(source, dest)


def overlay(source: int, dest: int) -> None:
    """Lays the data of ``source`` over ``dest``, which is as large; where ``source`` has holes
    ``dest`` stays as it is."""
    size = os.fstat(source).st_size
    for start, end in data_ranges(source, size):
        at = start
        while at < end:
            moved = _move(source, dest, at, end - at)
            if moved == 0:  # the source became shorter
                return
            at += moved


def data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that hold data, as (start, end) in bytes, in order."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as failed:
            if failed.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        if start >= end:
            return
        yield start, end
        at = end


def dig(descriptor: int, start: int, end: int) -> None:
    """Gives back the space of a part of a file, which then reads as zeros; nothing happens where
    the file system cannot."""
    keep_size = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc.fallocate(descriptor, keep_size, start, end - start) != 0:
        failed = ctypes.get_errno()
        if failed not in CANNOT_SHARE:
            raise OSError(failed, os.strerror(failed))


def _move(source: int, dest: int, at: int, length: int) -> int:
    """Copies up to ``length`` bytes at the same place of two files; returns how many."""
    try:
        return os.copy_file_range(source, dest, min(length, 64 * CHUNK), at, at)
    except OSError as failed:
        if failed.errno not in CANNOT_SHARE:
            raise
    data = os.pread(source, min(length, CHUNK), at)
    return os.pwrite(dest, data, at) if data else 0
