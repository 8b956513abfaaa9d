"""``/v1/snapshots``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from nexus.api.common import Created, CreatedMany, Item, Ok, Page
from nexus.api.vm_snapshots import (
    GoneWait,
    Snapshot,
    SnapshotClone,
    SnapshotRef,
    SnapshotState,
    SnapshotUpdate,
)
from nexus.api.vms import Vm, WaitState
from nexus.manager.keys import Done
from nexus.manager.routes.answers import item
from nexus.manager.routes.parts import WAIT_S, IdCursor, Limit, Wait_s
from nexus.manager.routes.vms import NamePrefix, awaited
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require
from nexus.manager.services.snapshots import SnapshotFilter
from nexus.manager.services.vm_creation import created

router = APIRouter(prefix="/v1/snapshots", tags=["snapshots"])

Reader = Annotated[Principal, require("snapshots:read")]
Writer = Annotated[Principal, require("snapshots:write")]
Maker = Annotated[Principal, require("vms:write")]
Ref = Annotated[SnapshotRef, Path(description="A snapshot's id, or its name.")]


@router.get("")
async def find(
    nexus: Nexus,
    principal: Reader,
    vm: Annotated[
        SnapshotRef | None,
        Query(description="Of this VM: its id, or its name then. It may be gone."),
    ] = None,
    name: NamePrefix = None,
    state: SnapshotState | None = None,
    internal: Annotated[bool, Query(description="Also those of prebooted templates.")] = False,
    cursor: IdCursor = None,
    limit: Limit = 100,
) -> Page[Snapshot]:
    """Snapshots in the order they were asked for, narrowed to those that meet all conditions."""
    narrowed = SnapshotFilter(vm=vm, name_prefix=name, state=state, internal=internal)
    return await nexus.snapshots.page(principal.project, narrowed, cursor=cursor, limit=limit)


@router.get("/{ref}", response_model=Item[Snapshot])
async def get(request: Request, nexus: Nexus, principal: Reader, ref: Ref) -> Response:
    """One snapshot, by id or name."""
    return item(request, await nexus.snapshots.get(principal.project, ref))


@router.patch("/{ref}", response_model=Item[Snapshot])
async def update(
    request: Request, nexus: Nexus, principal: Writer, ref: Ref, body: SnapshotUpdate
) -> Response:
    """Renames a snapshot."""
    caller = caller_of(request, principal, "snapshots:write")
    return item(request, await nexus.snapshots.rename(caller, ref, body))


@router.delete("/{ref}")
async def delete(
    request: Request,
    nexus: Nexus,
    principal: Writer,
    ref: Ref,
    wait: Annotated[GoneWait | None, Query(description="Answer when its files are gone.")] = None,
    timeout_s: Wait_s = WAIT_S,
    merge: Annotated[bool, Query(description="Make diffs on top of it whole first.")] = False,
) -> Ok:
    """Deletes a snapshot. 409 while a diff on top of it, or a VM without its disks yet, needs it;
    VMs that were loaded from it do not."""
    caller = caller_of(request, principal, "snapshots:write")
    snapshot = await nexus.snapshots.delete(caller, ref, merge=merge)
    if wait is not None:
        await nexus.snapshots.gone(snapshot, timeout_s)
    return Ok()


@router.post("/{ref}/instantiate", status_code=201)
async def instantiate(
    request: Request,
    nexus: Nexus,
    principal: Maker,
    ref: Ref,
    body: SnapshotClone,
    wait: Annotated[WaitState | None, Query(description="Answer when each VM is so.")] = None,
    timeout_s: Wait_s = WAIT_S,
) -> CreatedMany[Vm] | Created[Vm]:
    """Makes a VM from a snapshot, or ``count`` of them: each goes on where the snapshot was taken,
    with a name, addresses and disks of its own. They are placed where the snapshot lies."""
    caller = caller_of(request, principal, "vms:write")
    try:
        made = await nexus.snapshot_use.instantiate(caller, ref, body)
    except Done as done:
        made = await nexus.vms.done_before(done, caller.project)
    if wait is not None:
        made = await awaited(nexus, made, wait, timeout_s)
    return created(body, made)
