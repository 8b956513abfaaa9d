"""``/v1/vms/{id}/files``: files in a guest, streamed both ways and never held."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from nexus import streams
from nexus.api.common import Item, Ok, Page
from nexus.api.errors import NexusError
from nexus.api.guest import MAX_UPLOAD_BYTES, GuestEntry, GuestFile, Written
from nexus.manager.routes.parts import InGuest, VmRef
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/vms", tags=["guests"])

Operator = Annotated[Principal, require("vms:exec")]
Body = Annotated[AsyncIterator[bytes], Depends(streams.upload(MAX_UPLOAD_BYTES))]
Mode = Annotated[
    str, Query(pattern=r"^[0-7]{3,4}$", description="Permissions in octal, as in 0644.")
]


@router.get("/{ref}/files", response_class=streams.Download, status_code=200)
async def get_file(
    ref: VmRef, nexus: Nexus, principal: Operator, path: InGuest
) -> streams.Download:
    """A file's content. ``X-Nexus-File-Mode`` and ``X-Nexus-File-Size`` tell of it; when the
    connection breaks off, the content is not whole."""
    visit = await nexus.guests.look(ref, principal.project)
    async with AsyncExitStack() as held:
        headers, content = await held.enter_async_context(visit.agent.get_file(visit.vm_id, path))
        return streams.Download(content, held.pop_all().aclose, headers)


@router.put(
    "/{ref}/files",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {streams.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_file(
    ref: VmRef,
    request: Request,
    nexus: Nexus,
    principal: Operator,
    path: InGuest,
    body: Body,
    mode: Mode = "0644",
) -> Item[Written]:
    """Writes a file; an old one is replaced when the new one is whole."""
    caller = caller_of(request, principal, "vms:exec")
    details = {"path": path, "mode": mode}
    try:
        async with nexus.guests.visit(ref, caller, "vm.put_file", details) as visit:
            written = await visit.agent.put_file(visit.vm_id, path, mode, body)
            visit.outcome["size_bytes"] = written.size_bytes
    except NexusError:
        await streams.drain(body)
        raise
    return Item(item=written)


@router.get("/{ref}/files/stat")
async def stat_file(
    ref: VmRef, nexus: Nexus, principal: Operator, path: InGuest
) -> Item[GuestFile]:
    """What is at a path in the guest; a link is not followed."""
    visit = await nexus.guests.look(ref, principal.project)
    return Item(item=await visit.agent.stat_file(visit.vm_id, path))


@router.get("/{ref}/files/list")
async def list_files(
    ref: VmRef, nexus: Nexus, principal: Operator, path: InGuest
) -> Page[GuestEntry]:
    """All entries of a directory in the guest, on one page."""
    visit = await nexus.guests.look(ref, principal.project)
    return Page(items=await visit.agent.list_files(visit.vm_id, path))


@router.post("/{ref}/files/mkdir")
async def make_directory(
    ref: VmRef,
    request: Request,
    nexus: Nexus,
    principal: Operator,
    path: InGuest,
    mode: Mode = "0755",
) -> Ok:
    """Makes a directory in the guest; its parent must exist."""
    caller = caller_of(request, principal, "vms:exec")
    details = {"path": path, "mode": mode}
    async with nexus.guests.visit(ref, caller, "vm.make_directory", details) as visit:
        await visit.agent.make_directory(visit.vm_id, path, mode)
    return Ok()
