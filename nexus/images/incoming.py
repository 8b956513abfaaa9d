"""A content that is on its way into a store: received in order, hashed meanwhile, sparse.

Its file lies in ``{store}/incoming`` under its hash, and its length is how far it has come. What a
receiver had that was killed is gone on with, after it was read once more to be hashed.
"""

import fcntl
import hashlib
import os
from pathlib import Path

from nexus.images.errors import BadImage, StoreError
from nexus.images.intake import write_sparse
from nexus.images.progress import quiet
from nexus.images.store import Store, feed, feed_zeros


class Incoming:
    """One content in the making; of one process at a time, by a file lock. Blocks."""

    def __init__(self, store: Store, sha256: str, size_bytes: int) -> None:
        """Goes on where an earlier one was. Raises StoreError if another one is at it."""
        self._store = store
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._digest = hashlib.sha256()
        self._path = file_of(store, sha256)
        self._path.parent.mkdir(exist_ok=True)
        self._file = _locked(self._path)
        try:
            self.offset = min(os.fstat(self._file).st_size, size_bytes)
            feed(self._digest, self._file, self.offset, quiet)
        except BaseException:
            self.close()
            raise

    def skip(self, to: int) -> None:
        """There is a hole until ``to``."""
        if to > self.offset:
            feed_zeros(self._digest, to - self.offset)
            os.ftruncate(self._file, to)
            self.offset = to

    def write(self, data: bytes) -> None:
        """What comes next. Raises OSError."""
        self._digest.update(data)
        write_sparse(self._file, data, self.offset)
        self.offset += len(data)

    def finish(self) -> None:
        """Puts it into the store. Raises BadImage if it is not the content, and keeps nothing."""
        self.skip(self._size_bytes)
        if self._digest.hexdigest() != self._sha256:
            self._path.unlink(missing_ok=True)
            raise BadImage(
                f"what was received is not {self._sha256}",
                "it is fetched anew; if that fails too, check the manager's disk",
            )
        self._store.keep(self._sha256, self._file, self._path)

    def close(self) -> None:
        """What was received stays for the next one."""
        os.close(self._file)


def file_of(store: Store, sha256: str) -> Path:
    """Where a content lies while it is received. Raises ValueError."""
    return store.root / "incoming" / store.path(sha256).name


def clear(store: Store, keep: set[str]) -> None:
    """Removes what was begun and is not wanted any more."""
    for left in (store.root / "incoming").glob("*"):
        if left.name not in keep:
            left.unlink(missing_ok=True)


def _locked(path: Path) -> int:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StoreError(
                "another process is receiving this image", "wait for it, or end it"
            ) from None
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor
        os.close(descriptor)  # It went into the store, or away, before it could be locked.
