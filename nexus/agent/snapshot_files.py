"""The files of a snapshot: cloned, sealed with their checksums, merged, and placed in a VM's root.

Blocking; every function raises OSError.
"""

import errno
import hashlib
import os
from pathlib import Path

from nexus.agent.nofollow import opened
from nexus.api.snapshots import SnapshotFile
from nexus.images import sparse

SEALED_MODE = 0o444
"""A VMM in a jail may read what it loads, and nobody writes to it."""
PIECE = 64 << 10
"""Memory of zeros is given back in pieces of this size."""
_ZEROS = bytes(sparse.CHUNK)
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


def link(source: Path, dest: Path) -> None:
    """A second name of a file that nobody writes to, else a copy; replaces what was there."""
    dest.unlink(missing_ok=True)
    try:
        os.link(source, dest)
    except OSError as failed:
        if failed.errno not in _CANNOT_LINK:
            raise
        sparse.clone_file(source, dest)
        with opened(dest) as copy:
            os.fchmod(copy, SEALED_MODE)


def clone(source: Path, dest: Path) -> None:
    """A copy of a disk; replaces what was there.

    The source lies where a VMM may write, which may be a hostile one: it is no link.
    """
    dest.unlink(missing_ok=True)
    with opened(source, os.O_RDONLY) as old, dest.open("xb") as new:
        sparse.clone(old, new.fileno())


def seal(file: Path, *, memory: bool = False, sha256: str | None = None) -> SnapshotFile:
    """Makes a file durable, read-only and root's, and says what it is. ``memory`` gives back the
    space of zeros; a diff must keep them, they are news. ``sha256`` is given when it is known.

    A VMM made it, which may be a hostile one: it is no link, and nobody else has a name of it.
    """
    with opened(file, os.O_RDWR if memory else os.O_RDONLY) as descriptor:
        found = os.fstat(descriptor)
        if sha256 is None:
            if found.st_nlink != 1:
                raise OSError(errno.EMLINK, "it has other names", str(file))
            os.fchown(descriptor, 0, 0)
            os.fchmod(descriptor, SEALED_MODE)
            sha256 = _hash(descriptor, found.st_size, dig=memory)
        os.fsync(descriptor)
        return _described(file.name, descriptor, sha256)


def merge(parent: Path, diff: Path) -> SnapshotFile:
    """Makes a diff's memory file whole: what it holds, laid over a clone of its parent's."""
    fresh = diff.with_name(f".{diff.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        with (
            parent.open("rb") as below,
            opened(diff, os.O_RDONLY) as above,
            fresh.open("x+b") as made,
        ):
            descriptor = made.fileno()
            sparse.clone(below.fileno(), descriptor)
            sparse.overlay(above, descriptor)
            os.fchmod(descriptor, SEALED_MODE)
            # Zeros stay: cut off here, what came of it is laid over the parent once more, and a
            # hole in it would let the parent's memory through.
            sha256 = _hash(descriptor, os.fstat(descriptor).st_size, dig=False)
            os.fsync(descriptor)
            merged = _described(diff.name, descriptor, sha256)
        fresh.replace(diff)
    finally:
        fresh.unlink(missing_ok=True)
    return merged


def _described(name: str, descriptor: int, sha256: str) -> SnapshotFile:
    found = os.fstat(descriptor)
    return SnapshotFile(
        name=name, size_bytes=found.st_size, disk_bytes=found.st_blocks * 512, sha256=sha256
    )


def _hash(descriptor: int, size: int, *, dig: bool) -> str:
    """The sha256 of a whole file; holes are zeros and are not read."""
    digest = hashlib.sha256()
    at = 0
    for start, end in (*sparse.data_ranges(descriptor, size), (size, size)):
        while at < start:
            step = min(start - at, len(_ZEROS))
            digest.update(memoryview(_ZEROS)[:step])
            at += step
        while at < end:
            data = os.pread(descriptor, min(end - at, sparse.CHUNK), at)
            if not data:
                raise OSError(errno.EIO, "it ended early")
            digest.update(data)
            if dig:
                _dig_zeros(descriptor, at, data)
            at += len(data)
    return digest.hexdigest()


def _dig_zeros(descriptor: int, at: int, data: bytes) -> None:
    if data == _ZEROS:
        sparse.dig(descriptor, at, at + len(data))
        return
    for first in range(0, len(data), PIECE):
        if data[first : first + PIECE] == _ZEROS[:PIECE]:
            sparse.dig(descriptor, at + first, at + first + PIECE)
