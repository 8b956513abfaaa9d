"""Whether a file system shares blocks between files, and what a VM's disk costs on it."""

import os
import tempfile
import time
from pathlib import Path

from nexus.images import sparse

MIB = 1 << 20
_PIECE = 4 * MIB


def can_share(folder: Path) -> bool:
    """Whether a copy of a file in this folder can share the file's blocks."""
    with (
        tempfile.TemporaryFile(dir=folder) as source,
        tempfile.TemporaryFile(dir=folder) as copy,
    ):
        source.write(b"x" * 4096)
        source.flush()
        try:
            sparse.share(copy.fileno(), source.fileno())
        except OSError:
            return False
        return True


def clone_ms(folder: Path, mib: int) -> float:
    """How long a clone of a disk of so many MiB takes here; it holds data everywhere."""
    with (
        tempfile.TemporaryFile(dir=folder) as root,
        tempfile.TemporaryFile(dir=folder) as clone,
    ):
        piece = os.urandom(_PIECE)
        left = mib * MIB
        while left > 0:
            left -= root.write(piece[: min(left, _PIECE)])
        root.flush()
        os.fsync(root.fileno())
        begun = time.perf_counter()
        sparse.clone(root.fileno(), clone.fileno())
        return (time.perf_counter() - begun) * 1000
