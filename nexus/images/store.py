"""The content-addressed image store: ``{root}/sha256/{hex}``, one file a content, mode 0444.

A file appears under its name only whole and on the disk. Copies share blocks where the file system
can (reflink), else they keep holes: a 64 MiB root that holds 6 MiB costs 6 MiB.
"""

import contextlib
import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nexus.images import sparse, workplace
from nexus.images.errors import StoreError
from nexus.images.progress import Progress, quiet

SHA256 = re.compile(r"[0-9a-f]{64}")
BLOB_MODE = 0o444

Fill = Callable[[int, Path], None]
"""Writes a content into an empty file, given as descriptor and path."""


_ZEROS = bytes(sparse.CHUNK)
_REGISTRY = "registry"


@dataclass(frozen=True)
class HeldBlob:
    """A content in the store, as whoever needs room looks at it."""

    sha256: str
    size_bytes: int
    disk_bytes: int
    used_at: float
    """In seconds since the epoch."""


@dataclass(frozen=True)
class StoredBlob:
    """A content in the store."""

    sha256: str
    size_bytes: int


class Store:
    """The only writer of an image store. Safe to use from many threads and processes at once."""

    def __init__(self, root: Path) -> None:
        """Makes the store's folder if need be, and clears what killed imports left there."""
        self.root = root
        self._blobs = root / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        workplace.clear(self._blobs)

    def path(self, sha256: str) -> Path:
        """Where a content is or would be. Raises ValueError if this is no sha256 in hex."""
        if not SHA256.fullmatch(sha256):
            raise ValueError(f"not a sha256 in lower-case hex: {sha256!r}")
        return self._blobs / sha256

    def has(self, sha256: str) -> bool:
        """Whether the content is in the store."""
        return self.path(sha256).is_file()

    def import_file(self, source: Path | int, *, progress: Progress = quiet) -> StoredBlob:
        """Takes a copy of a regular file, given by path or open descriptor, into the store.

        The file is opened once, and not through a symbolic link as the last part of the path; an
        open descriptor is used as it is and stays open. A content that is there already stays.
        Raises StoreError if it is no regular file, changes meanwhile, or does not fit.
        """
        if isinstance(source, int):
            return self._import(source, progress)
        try:
            descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as failed:
            raise _not_readable(source, failed) from failed
        try:
            return self._import(descriptor, progress)
        finally:
            os.close(descriptor)

    def clone(self, sha256: str, dest: Path) -> None:
        """Makes ``dest`` a private, writable copy of a content, mode 0600: a VM's disk.

        Holes stay holes. ``dest`` appears whole or not at all and replaces what was there.
        Raises StoreError if the store has no such content.
        """
        blob = self._open(sha256)
        self._note_use(sha256)
        try:
            with workplace.file(dest.parent) as (made, path):
                sparse.clone(blob, made)
                path.replace(dest)
        finally:
            os.close(blob)

    def link(self, sha256: str, dest: Path) -> None:
        """Makes ``dest`` the content for reading only: a hard link, else a copy with mode 0444.

        Replaces what was there. Raises StoreError if the store has no such content.
        """
        blob = self.path(sha256)
        if not blob.exists():
            raise _missing(sha256)
        dest.unlink(missing_ok=True)
        self._note_use(sha256)
        try:
            os.link(blob, dest)
        except OSError as failed:
            if failed.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
            self.clone(sha256, dest)
            dest.chmod(BLOB_MODE)

    def remove(self, sha256: str) -> None:
        """Removes a content; nothing happens if it is not there. Clones and links stay good."""
        self.path(sha256).unlink(missing_ok=True)

    def set_aside(self, sha256: str) -> Path:
        """Takes a content out of the store at once, and answers which file is left to unlink.

        That may take long where this does not. What a killed one left goes at the next start.
        """
        aside = self._blobs / f"{workplace.PREFIX}{sha256}"
        with contextlib.suppress(FileNotFoundError):
            self.path(sha256).replace(aside)
        return aside

    def held(self) -> list[HeldBlob]:
        """All contents, with what they take and when they were last cloned or linked."""
        found = []
        for entry in os.scandir(self._blobs):
            if SHA256.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    seen = entry.stat(follow_symlinks=False)
                    disk_bytes = seen.st_blocks * sparse.BLOCK
                    found.append(HeldBlob(entry.name, seen.st_size, disk_bytes, seen.st_atime))
        return found

    def claim(self) -> None:
        """Marks the store as that of a registry: what lies here may be the only copy there is."""
        (self.root / _REGISTRY).touch()

    @property
    def is_registry(self) -> bool:
        """Whether the store was claimed; then nobody else decides what is removed from it."""
        return (self.root / _REGISTRY).exists()

    def keep(self, sha256: str, made: int, path: Path) -> None:
        """Puts a whole file, whose hash is known to be right, under its name. Raises OSError."""
        os.fchmod(made, BLOB_MODE)
        os.fsync(made)
        path.replace(self.path(sha256))
        self._sync_folder()

    def _note_use(self, sha256: str) -> None:
        path = self.path(sha256)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))

    def _open(self, sha256: str) -> int:
        try:
            return os.open(self.path(sha256), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as failed:
            raise _missing(sha256) from failed

    def _import(self, source: int, progress: Progress) -> StoredBlob:
        before = os.fstat(source)
        if not stat.S_ISREG(before.st_mode):
            raise StoreError("the source is not a regular file", "give the path of an image file")

        def fill(made: int, _path: Path) -> None:
            sparse.clone(source, made)
            after = os.fstat(source)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise StoreError(
                    "the source was written to while it was read", "import it when it is at rest"
                )

        return self.receive(fill, progress=progress)

    def receive(self, fill: Fill, *, progress: Progress = quiet) -> StoredBlob:
        """Takes what ``fill`` writes, given an empty file's descriptor and path, into the store.

        Raises what ``fill`` raises, and then keeps nothing; StoreError if it does not fit.
        """
        with workplace.file(self._blobs) as (made, path):
            try:
                fill(made, path)
                # The copy is hashed, not the source: a change meanwhile cannot give a wrong name.
                size = os.fstat(made).st_size
                digest = hashlib.sha256()
                feed(digest, made, size, progress)
                sha256 = digest.hexdigest()
                if not self.has(sha256):
                    self.keep(sha256, made, path)
            except OSError as failed:
                raise StoreError(
                    f"cannot keep the image: {failed.strerror}",
                    "free some space in the image store",
                ) from failed
        progress(1.0, "stored")
        return StoredBlob(sha256, size)

    def _sync_folder(self) -> None:
        folder = os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def feed(digest: "hashlib._Hash", descriptor: int, size: int, progress: Progress) -> None:
    """Hashes the first ``size`` bytes of a file; holes count as zeros and are not read."""
    at = 0
    for start, end in (*sparse.data_ranges(descriptor, size), (size, size)):
        if at < start:
            feed_zeros(digest, start - at)
            at = start
            progress(at / size, "checking")
        while at < end:
            data = os.pread(descriptor, min(end - at, sparse.CHUNK), at)
            if not data:
                raise OSError(errno.EIO, "the copy ended early")
            digest.update(data)
            at += len(data)
            progress(at / size, "checking")


def feed_zeros(digest: "hashlib._Hash", count: int) -> None:
    """Hashes so many zeros."""
    for at in range(0, count, len(_ZEROS)):
        digest.update(memoryview(_ZEROS)[: count - at])


def _missing(sha256: str) -> StoreError:
    return StoreError(f"the image store has no {sha256}", "register the image again")


def _not_readable(source: Path, failed: OSError) -> StoreError:
    if failed.errno == errno.ELOOP:
        return StoreError(f"{source} is a symbolic link", "give the path of the file itself")
    return StoreError(
        f"cannot open {source}: {failed.strerror}", "check the path and who may read it"
    )
