"""``/v1/vms/{id}/snapshots`` and ``/v1/vms/{id}/restore``."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from nexus.api.common import Created, Item, Page
from nexus.api.vm_snapshots import Snapshot, SnapshotCreate, SnapshotWait, VmRestore
from nexus.api.vms import Vm
from nexus.manager.keys import Done
from nexus.manager.routes.answers import item
from nexus.manager.routes.parts import (
    WAIT_S,
    IdCursor,
    Limit,
    VmRef,
    Wait,
    Wait_s,
    Writer,
)
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require
from nexus.manager.services.waits import explain, has_reached, wait_for

router = APIRouter(prefix="/v1/vms", tags=["snapshots"])

Reader = Annotated[Principal, require("snapshots:read")]
Taker = Annotated[Principal, require("snapshots:write")]


@router.post("/{ref}/snapshots", status_code=201)
async def create(
    request: Request,
    nexus: Nexus,
    principal: Taker,
    ref: VmRef,
    body: SnapshotCreate,
    wait: Annotated[
        SnapshotWait | None, Query(description="Answer when it is ready, or has failed.")
    ] = None,
    timeout_s: Wait_s = WAIT_S,
) -> Created[Snapshot]:
    """Takes a snapshot of a VM that runs or is paused: memory, VMM state and disks of one moment.
    The guest stands still for it and goes on."""
    caller = caller_of(request, principal, "snapshots:write")
    try:
        snapshot = await nexus.snapshots.create(caller, ref, body)
    except Done as done:
        snapshot = await nexus.snapshots.done_before(done, caller.project)
    if wait is not None:
        snapshot = await nexus.snapshots.settled(snapshot, timeout_s)
    return Created(id=snapshot.id, item=snapshot)


@router.get("/{ref}/snapshots")
async def find(
    nexus: Nexus, principal: Reader, ref: VmRef, cursor: IdCursor = None, limit: Limit = 100
) -> Page[Snapshot]:
    """A VM's snapshots in the order they were asked for."""
    return await nexus.snapshots.of_vm(principal.project, ref, cursor=cursor, limit=limit)


@router.post("/{ref}/restore", response_model=Item[Vm])
async def restore(
    request: Request,
    nexus: Nexus,
    principal: Writer,
    ref: VmRef,
    body: VmRestore,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Response:
    """Puts a VM back to one of its own snapshots, memory and disks. What it does now is ended at
    once and without asking; its name and addresses stay."""
    caller = caller_of(request, principal, "vms:write")
    try:
        vm = await nexus.snapshot_use.restore(caller, ref, body)
    except Done as done:
        (vm,) = await nexus.vms.done_before(done, caller.project)
    if wait is not None:
        seen = await wait_for(nexus.db, nexus.waiters, vm, wait, timeout_s)
        if seen is None or not has_reached(seen, wait):
            raise explain(seen, wait)
        vm = seen
    return item(request, vm)
