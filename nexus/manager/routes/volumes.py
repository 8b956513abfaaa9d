"""``/v1/volumes``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from nexus.api.common import Created, Item, Ok, Page, VolumeRef
from nexus.api.devices import DeviceWait
from nexus.api.vms import Vm
from nexus.api.volumes import (
    Volume,
    VolumeAttach,
    VolumeChange,
    VolumeCreate,
    VolumeDetach,
    VolumeSnapshot,
)
from nexus.manager.routes.answers import item
from nexus.manager.routes.parts import WAIT_S, IdCursor, Limit, Wait_s
from nexus.manager.runtime import Nexus, Runtime, caller_of
from nexus.manager.security import Principal, require
from nexus.manager.services.vm_devices import refusal_of
from nexus.manager.services.waits import explain, wait_for

router = APIRouter(prefix="/v1/volumes", tags=["volumes"])

Reader = Annotated[Principal, require("volumes:read")]
Writer = Annotated[Principal, require("volumes:write")]
Ref = Annotated[VolumeRef, Path(description="A volume's id, or its name.")]
Wait = Annotated[DeviceWait | None, Query(description="Answer when the VM's host has done it.")]


@router.post("", status_code=201)
async def create(
    request: Request, nexus: Nexus, principal: Writer, body: VolumeCreate
) -> Created[Volume]:
    """Makes a volume. It takes room on its host only as a guest writes to it."""
    volume = await nexus.volumes.create(caller_of(request, principal, "volumes:write"), body)
    return Created(id=volume.id, item=volume)


@router.get("")
async def find(
    nexus: Nexus, principal: Reader, cursor: IdCursor = None, limit: Limit = 100
) -> Page[Volume]:
    """Volumes in the order they were made."""
    return await nexus.volumes.page(principal.project, cursor=cursor, limit=limit)


@router.get("/{ref}", response_model=Item[Volume])
async def get(request: Request, nexus: Nexus, principal: Reader, ref: Ref) -> Response:
    """One volume."""
    return item(request, await nexus.volumes.get(principal.project, ref))


@router.patch("/{ref}", response_model=Item[Volume])
async def update(
    request: Request,
    nexus: Nexus,
    principal: Writer,
    ref: Ref,
    body: VolumeChange,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Response:
    """Renames a volume, or makes it larger; a guest that runs with it sees the new size."""
    caller = caller_of(request, principal, "volumes:write")
    volume, told = await nexus.volumes.update(caller, ref, body)
    return item(request, await _settled(nexus, volume, told, wait, timeout_s))


@router.post("/{ref}/attach", response_model=Item[Volume])
async def attach(
    request: Request,
    nexus: Nexus,
    principal: Writer,
    ref: Ref,
    body: VolumeAttach,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Response:
    """Gives a volume to a VM that does not run, or reboots it with ``restart``."""
    caller = caller_of(request, principal, "volumes:write")
    volume, told = await nexus.attachments.attach(caller, ref, body)
    return item(request, await _settled(nexus, volume, told, wait, timeout_s))


@router.post("/{ref}/detach", response_model=Item[Volume])
async def detach(
    request: Request,
    nexus: Nexus,
    principal: Writer,
    ref: Ref,
    body: VolumeDetach | None = None,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Response:
    """Takes a volume from a VM that does not run, or reboots it with ``restart``."""
    caller = caller_of(request, principal, "volumes:write")
    restart = body is not None and body.restart
    volume, told = await nexus.attachments.detach(caller, ref, restart=restart)
    return item(request, await _settled(nexus, volume, told, wait, timeout_s))


@router.post("/{ref}/snapshot", status_code=201)
async def snapshot(
    request: Request, nexus: Nexus, principal: Writer, ref: Ref, body: VolumeSnapshot
) -> Created[Volume]:
    """Makes a new volume that begins as this one is. 409 while a VM runs with it."""
    caller = caller_of(request, principal, "volumes:write")
    volume = await nexus.volume_snapshots.take(caller, ref, body.name)
    return Created(id=volume.id, item=volume)


@router.delete("/{ref}")
async def delete(request: Request, nexus: Nexus, principal: Writer, ref: Ref) -> Ok:
    """Deletes a volume with what is on it. 409 while a VM has it."""
    await nexus.volumes.delete(caller_of(request, principal, "volumes:write"), ref)
    return Ok()


async def _settled(
    nexus: Runtime, volume: Volume, told: Vm | None, wait: DeviceWait | None, timeout_s: float
) -> Volume:
    """With a wait: the volume once the VM's host was told, or why it was not. What was asked for
    stays wanted all the same."""
    if wait is None or told is None:
        return volume
    seen = await wait_for(nexus.db, nexus.waiters, told, wait, timeout_s)
    refusal = refusal_of(seen) if seen is not None else None
    if refusal is not None:
        raise refusal
    if seen is not None and seen.error is not None and told.error is None:
        raise explain(seen, wait)
    return await nexus.volumes.get(volume.project, volume.id)
