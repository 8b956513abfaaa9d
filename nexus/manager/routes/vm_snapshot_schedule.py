"""``/v1/vms/{id}/snapshot-schedule``"""

from typing import Annotated

from fastapi import APIRouter, Request

from nexus.api.common import Item, Ok
from nexus.api.vm_snapshots import SnapshotSchedule, SnapshotScheduleSet
from nexus.manager.routes.parts import VmRef
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/vms", tags=["snapshots"])

Reader = Annotated[Principal, require("snapshots:read")]
Taker = Annotated[Principal, require("snapshots:write")]


@router.put("/{ref}/snapshot-schedule")
async def put(
    request: Request, nexus: Nexus, principal: Taker, ref: VmRef, body: SnapshotScheduleSet
) -> Item[SnapshotSchedule]:
    """Has snapshots of a VM taken every so often, and keeps the newest of them."""
    caller = caller_of(request, principal, "snapshots:write")
    schedule = await nexus.snapshot_schedules.put(caller, ref, body)
    nexus.schedule_pipeline.look_at(schedule.vm_id)
    return Item(item=schedule)


@router.get("/{ref}/snapshot-schedule")
async def get(nexus: Nexus, principal: Reader, ref: VmRef) -> Item[SnapshotSchedule]:
    """A VM's schedule, and why the last snapshot that was due was not taken."""
    return Item(item=await nexus.snapshot_schedules.get(principal.project, ref))


@router.delete("/{ref}/snapshot-schedule")
async def delete(request: Request, nexus: Nexus, principal: Taker, ref: VmRef) -> Ok:
    """Ends it. The snapshots that it made stay, until somebody deletes them."""
    await nexus.snapshot_schedules.delete(caller_of(request, principal, "snapshots:write"), ref)
    return Ok()
