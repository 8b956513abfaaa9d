"""A snapshot as one file: a tar archive whose entries, their order and their names are fixed.

``nexus.json`` (what the manager knows), ``meta.json`` (what the host knows), then the snapshot's
files as ``meta.json`` lists them, each a regular file, and two blocks of zeros. Whatever unpacks
tar reads it; what is read here is nothing but that. See docs/snapshots-use.md.
"""

import tarfile
from collections.abc import AsyncIterator

from nexus.api.errors import ValidationFailed

MANIFEST = "nexus.json"
META = "meta.json"
MOST_TEXT = 1 << 20
"""So large may ``nexus.json`` and ``meta.json`` be."""
BLOCK = 512
END = bytes(2 * BLOCK)
PIECE = 1 << 20


class BadArchive(ValidationFailed):
    """What was sent is no archive of a snapshot, or not a whole one."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"not an archive of a snapshot: {why}",
            suggestion="send what nexus snapshot export wrote, as it is",
        )


def header(name: str, size: int) -> bytes:
    """What stands before a file in the archive."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """What stands behind it."""
    return bytes(-size % BLOCK)


def entry(name: str, content: bytes) -> bytes:
    """A small file as a whole."""
    return header(name, len(content)) + content + padding(len(content))


def taken(size: int) -> int:
    """How many bytes of the archive a file of ``size`` takes."""
    return BLOCK + size + len(padding(size))


class ArchiveReader:
    """Reads an archive as it comes and holds no more of it than a piece. Raises BadArchive for
    everything that is not as it must be, and what the source raises."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._held = b""

    async def text(self, name: str) -> bytes:
        """The next entry, which must have this name and be small."""
        size = await self.file(name)
        if size > MOST_TEXT:
            raise BadArchive(f"{name} has {size} bytes, and {MOST_TEXT} is most")
        return b"".join([piece async for piece in self.content(size)])

    async def file(self, name: str) -> int:
        """The size of the next entry, which must have this name and be a regular file."""
        block = await self._exactly(BLOCK)
        try:
            found = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise BadArchive(f"where {name} should begin is no header: {error}") from error
        if found.name != name or found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise BadArchive(f"{found.name[:100]!r} stands where the file {name} should")
        if found.size < 0 or found.linkname:
            raise BadArchive(f"{name} is no plain file")
        return found.size

    async def content(self, size: int) -> AsyncIterator[bytes]:
        """An entry's content, piece by piece; read it to its end before what follows."""
        left = size
        while left:
            piece = await self._some(min(left, PIECE))
            left -= len(piece)
            yield piece
        if any(await self._exactly(len(padding(size)))):
            raise BadArchive("there is something between two files")

    async def end(self) -> None:
        """Reads the archive's end; nothing may come behind it but zeros."""
        if any(await self._exactly(len(END))):
            raise BadArchive("it has more files than it lists")
        async for piece in self.rest():
            if any(piece):
                raise BadArchive("something comes behind its end")

    async def rest(self) -> AsyncIterator[bytes]:
        """All that has not been read."""
        if self._held:
            held, self._held = self._held, b""
            yield held
        async for piece in self._source:
            yield piece

    async def _some(self, most: int) -> bytes:
        while not self._held:
            try:
                self._held = await anext(self._source)
            except StopAsyncIteration:
                raise BadArchive("it ends in the middle") from None
        piece, self._held = self._held[:most], self._held[most:]
        return piece

    async def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += await self._some(size - len(found))
        return found
