"""``GET /v1/snapshots/{id}/export`` and ``POST /v1/snapshots/import``. The latter goes before the
routes of ``/v1/snapshots/{ref}``."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from nexus import streams
from nexus.api.common import Created
from nexus.api.errors import NexusError
from nexus.api.snapshots import SnapshotName
from nexus.api.vm_snapshots import Snapshot
from nexus.manager.routes.snapshots import Ref, Writer
from nexus.manager.routes.vms import Host
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/snapshots", tags=["snapshots"])

MOST_BYTES = 1 << 50
"""What there is room for is the host's say."""
Importer = Annotated[Principal, require("snapshots:import")]
Body = Annotated[AsyncIterator[bytes], Depends(streams.upload(MOST_BYTES))]


@router.post(
    "/import",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {streams.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def take_in(
    request: Request,
    nexus: Nexus,
    principal: Importer,
    body: Body,
    name: Annotated[SnapshotName | None, Query(description="Its own when absent.")] = None,
    host: Host = None,
) -> Created[Snapshot]:
    """Makes a snapshot of an archive that an export wrote; it is ``ready``, because its host has
    verified every file. Take archives from nobody you do not trust: a VMM does what the state in
    one says."""
    caller = caller_of(request, principal, "snapshots:import")
    try:
        snapshot = await nexus.snapshot_archives.take_in(caller, body, name, host)
    except NexusError:
        await streams.drain(body)
        raise
    return Created(id=snapshot.id, item=snapshot)


@router.get("/{ref}/export", response_class=streams.Download, status_code=200)
async def export(request: Request, nexus: Nexus, principal: Writer, ref: Ref) -> streams.Download:
    """A snapshot as one tar archive with its checksums. It holds what the guest had in memory.
    When the connection breaks off, it is not whole."""
    caller = caller_of(request, principal, "snapshots:write")
    exported, close = await nexus.snapshot_archives.export(caller, ref)
    headers = {
        "content-length": str(exported.size_bytes),
        "x-nexus-file-size": str(exported.size_bytes),
        "x-nexus-file-mode": "0600",
        "content-disposition": f'attachment; filename="{exported.name}.nexus-snapshot.tar"',
    }
    return streams.Download(exported.content, close, headers)
