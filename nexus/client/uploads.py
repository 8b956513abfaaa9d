"""Sending a file to the manager: in one stream, begun again where it broke off."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from nexus.api.images import ImageUpload, ImageUploadComplete
from nexus.client.errors import NexusApiError

Sent = Callable[[int, int], None]
"""Called with how many bytes are sent and how many there are in all."""

BLOCK_BYTES = 1 << 20
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0)
"""How long to wait after each failure in a row; the manager may be starting anew."""


def nothing_sent(_done: int, _total: int) -> None:
    """Tells nobody."""


@dataclass
class Sending:
    """A file on its way: what is left of it, its hash so far, and the failures in a row."""

    file: BinaryIO
    size_bytes: int
    sent: Sent = nothing_sent
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _hashed: int = 0
    _failures: int = 0
    _reached: int = 0

    @classmethod
    def of(cls, path: Path | str, sent: Sent | None) -> "Sending":
        """Raises NexusApiError if the file cannot be read or is empty."""
        try:
            file = Path(path).open("rb")  # noqa: SIM115 # closed by the context manager
        except OSError as error:
            raise _unreadable(path, error.strerror or "it cannot be read") from error
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            file.close()
            raise _unreadable(path, "it is empty")
        return cls(file, size, sent or nothing_sent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.file.close()

    def headers(self, offset: int) -> dict[str, str]:
        """What a request says that sends everything from ``offset`` on."""
        return {
            "content-type": "application/octet-stream",
            "content-length": str(self.size_bytes - offset),
            "upload-offset": str(offset),
        }

    def blocks(self, offset: int) -> Iterator[bytes]:
        """The file from ``offset`` on; on the way it is hashed, each byte once."""
        self._hash_up_to(offset)
        at = offset
        while at < self.size_bytes:
            data = self._read(at)
            if at + len(data) > self._hashed:
                self._digest.update(data[self._hashed - at :])
                self._hashed = at + len(data)
            yield data
            at += len(data)
            self.sent(at, self.size_bytes)

    def arrived(self, offset: int) -> None:
        """Notes how far the manager has it; going forward forgives earlier failures."""
        if offset > self._reached:
            self._reached, self._failures = offset, 0
        self.sent(offset, self.size_bytes)

    def failed(self, error: NexusApiError) -> float:
        """How long to wait before going on after ``error``; raises it when that makes no sense."""
        passing = error.status in (0, 409, 502, 503, 504) and error.code != "name_taken"
        if not passing or self._failures >= len(PAUSES_S):
            raise error
        self._failures += 1
        return PAUSES_S[self._failures - 1]

    def stalled(self) -> float:
        """The same when the manager took nothing of what was sent."""
        return self.failed(NexusApiError(504, "timed_out", "the manager takes nothing more"))

    def check(self, upload: ImageUpload) -> None:
        """Raises NexusApiError if the upload is of another file than this one."""
        if upload.size_bytes not in (None, self.size_bytes) or upload.offset > self.size_bytes:
            raise NexusApiError(
                409,
                "conflict",
                f"the upload {upload.id} is of a file of {upload.size_bytes} bytes, this one has "
                f"{self.size_bytes}",
                suggestion="give the same file as before, or upload it anew",
            )

    def complete(self) -> ImageUploadComplete:
        """The last request, with the sha256 of all that was sent."""
        self._hash_up_to(self.size_bytes)
        return ImageUploadComplete(sha256=self._digest.hexdigest())

    def _hash_up_to(self, end: int) -> None:
        while self._hashed < end:
            data = self._read(self._hashed)[: end - self._hashed]
            self._digest.update(data)
            self._hashed += len(data)

    def _read(self, at: int) -> bytes:
        wanted = min(BLOCK_BYTES, self.size_bytes - at)
        data = os.pread(self.file.fileno(), wanted, at)
        if not data:
            raise NexusApiError(
                0, "conflict", "the file became shorter", suggestion="upload it when it is at rest"
            )
        return data


def _unreadable(path: Path | str, why: str) -> NexusApiError:
    return NexusApiError(0, "not_found", f"cannot upload {path}: {why}", suggestion="ls -l FILE")
