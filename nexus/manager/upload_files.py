"""The bytes of uploads: one file an upload, whose length is how far the upload is.

A file is written at its end only, under a lock that the kernel lets go when its holder dies; so an
upload goes on after a lost connection and after a restart alike.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nexus.api.errors import Conflict, NoCapacity, NotFound
from nexus.images import room
from nexus.images.intake import write_sparse

_READ_BYTES = 1 << 20
_FULL = "free some space in the image store; the upload can go on where it stopped"


@dataclass(frozen=True, slots=True)
class Written:
    """How far a file is, and when something was written last; None if there is no file yet."""

    offset: int
    at: datetime | None


class UploadFiles:
    """The folder of one manager's uploads. All of this blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def written(self, upload_id: str) -> Written:
        try:
            found = (self._folder / upload_id).stat()
        except FileNotFoundError:
            return Written(0, None)
        return Written(found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    @contextlib.contextmanager
    def locked(self, upload_id: str, *, make: bool = True) -> Iterator["UploadFile"]:
        """The file, for its only writer; made empty if need be.

        Raises Conflict while somebody else has it, NotFound if it is not there and not ``make``.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0)
        path = self._folder / upload_id
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            raise NotFound("nothing of the upload is there") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(
                    "another request is at work on this upload",
                    suggestion="wait for it, then ask for the offset and go on from there",
                ) from None
            yield UploadFile(descriptor, path)
        finally:
            os.close(descriptor)

    def remove(self, upload_id: str) -> None:
        (self._folder / upload_id).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The ids of all files there."""
        if not self._folder.is_dir():
            return []
        return [path.name for path in self._folder.iterdir()]

    def free_bytes(self) -> int:
        """How much more images may take of the disk."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return room.left(self._folder)


@dataclass(frozen=True, slots=True)
class UploadFile:
    """An upload's file while it is locked."""

    descriptor: int
    path: Path

    @property
    def offset(self) -> int:
        return os.fstat(self.descriptor).st_size

    def append(self, data: bytes) -> None:
        """Writes at the end. Raises NoCapacity when the disk is full, but for what
        must stay free of it; what is whole stays."""
        try:
            write_sparse(self.descriptor, data, self.offset)
        except OSError as failed:
            raise NoCapacity(
                f"the upload cannot be kept: {failed.strerror}", suggestion=_FULL
            ) from failed

    def sha256(self) -> str:
        digest = hashlib.sha256()
        at = 0
        while data := os.pread(self.descriptor, _READ_BYTES, at):
            digest.update(data)
            at += len(data)
        return digest.hexdigest()
