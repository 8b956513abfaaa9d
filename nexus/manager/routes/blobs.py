"""``/v1/agent/blobs``: the contents of images, for the agents that lack them."""

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Path
from fastapi.responses import StreamingResponse

from nexus.api.blobs import BlobMap
from nexus.api.common import Sha256
from nexus.api.errors import NexusError, NotFound
from nexus.images import sparse
from nexus.manager.runtime import Nexus
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/agent/blobs", tags=["agents"])

Agent = Annotated[Principal, require("blobs:read")]
Content = Annotated[Sha256, Path(description="The content's sha256.")]
JOINED = 1 << 20
"""Holes smaller than this are sent: a request costs more than they do."""
MEDIA_TYPE = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")


class RangeNotSatisfiable(NexusError):
    code = "bad_request"
    status = 416


@router.get("/{sha256}/map")
async def get_map(sha256: Content, nexus: Nexus, _agent: Agent) -> BlobMap:
    """Where a content has data."""
    file = _find(nexus, sha256)
    size_bytes, ranges = await to_thread.run_sync(_ranges, file)
    return BlobMap(sha256=sha256, size_bytes=size_bytes, ranges=ranges)


@router.get(
    "/{sha256}",
    response_class=StreamingResponse,
    responses={
        200: {"content": {MEDIA_TYPE: {}}, "description": "All of it."},
        206: {"content": {MEDIA_TYPE: {}}, "description": "The bytes that were asked for."},
    },
)
async def get(
    sha256: Content,
    nexus: Nexus,
    _agent: Agent,
    wanted: Annotated[
        str | None, Header(alias="Range", max_length=64, description="``bytes=FIRST-LAST``")
    ] = None,
) -> StreamingResponse:
    """A content, or with ``Range`` one part of it."""
    file = _find(nexus, sha256)
    size = file.stat().st_size
    first, last = 0, size - 1
    if wanted is not None:
        first, last = _part(wanted, size)
    headers = {"content-length": str(last + 1 - first), "accept-ranges": "bytes"}
    if wanted is not None:
        headers["content-range"] = f"bytes {first}-{last}/{size}"
    status = 200 if wanted is None else 206
    body = _read(file, first, last + 1)
    return StreamingResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def _find(nexus: Nexus, sha256: str) -> FilePath:
    store = nexus.images.store
    if not store.has(sha256):
        raise NotFound(
            f"this manager's store has no content {sha256}",
            suggestion="register the image again: nexus image add, or nexus image upload",
        )
    return store.path(sha256)


def _part(wanted: str, size: int) -> tuple[int, int]:
    """The first and the last byte that a ``Range`` header asks for."""
    match = _RANGE.fullmatch(wanted.strip())
    if match is not None:
        first = int(match[1])
        last = min(int(match[2] or size), size - 1)
        if first <= last:
            return first, last
    raise RangeNotSatisfiable(
        f"the range {wanted!r} is not one part of {size} bytes",
        suggestion="ask for bytes=FIRST-LAST",
    )


def _ranges(file: FilePath) -> tuple[int, list[tuple[int, int]]]:
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        return size, joined(list(sparse.data_ranges(opened.fileno(), size)), JOINED)


def joined(ranges: list[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """The same parts, with those made one that less than ``gap`` bytes lie between."""
    made: list[tuple[int, int]] = []
    for start, end in ranges:
        if made and start - made[-1][1] < gap:
            made[-1] = (made[-1][0], end)
        else:
            made.append((start, end))
    return made


async def _read(file: FilePath, start: int, end: int) -> AsyncIterator[bytes]:
    descriptor = await to_thread.run_sync(os.open, file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while start < end:
            length = min(end - start, sparse.CHUNK)
            data = await to_thread.run_sync(os.pread, descriptor, length, start)
            if not data:
                return
            start += len(data)
            yield data
    finally:
        os.close(descriptor)
