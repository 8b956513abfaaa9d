"""Schedules: snapshots of a VM that are taken by themselves, and how many of them are kept."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import InUse, InvalidState, NexusError, NotFound
from nexus.api.vm_snapshots import SnapshotSchedule, SnapshotScheduleSet
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow, SnapshotScheduleRow
from nexus.manager.db.tables import VmRow
from nexus.manager.services import vms
from nexus.manager.services.snapshot_taking import begin
from nexus.manager.services.snapshots import check_not_needed, discard
from nexus.manager.uow import SYSTEM, Caller, change

AT_ONCE = 100
"""So many schedules that are due are looked at in one go."""


class SnapshotSchedules:
    """The rules of schedules; a VM has one, or none."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def put(self, caller: Caller, ref: str, wanted: SnapshotScheduleSet) -> SnapshotSchedule:
        """Makes it so, whatever it was. The first is taken one interval from now; a change of
        ``keep`` alone moves nothing. Raises NotFound, InvalidState."""
        async with change(self.db, caller, "snapshot_schedule.set", target=ref) as unit:
            vm = await vms.find_for(unit, ref)
            if vm.power == "deleted":
                raise InvalidState(f"VM {vm.name!r} is being deleted", suggestion="nexus ls")
            row = await unit.session.get(SnapshotScheduleRow, vm.id, with_for_update=True)
            unit.before = _facts(row)
            if row is None:
                row = SnapshotScheduleRow(
                    vm_id=vm.id, project=vm.project, created_at=unit.at, every_s=0
                )
                unit.session.add(row)
            if row.every_s != wanted.every:
                row.every_s, row.next_at = wanted.every, unit.at + timedelta(seconds=wanted.every)
            row.keep, row.updated_at = wanted.keep, unit.at
            unit.after = _facts(row)
        return to_schedule(row)

    async def get(self, project: str, ref: str) -> SnapshotSchedule:
        """Raises NotFound."""
        async with self.db.read() as session:
            vm = await vms.find(session, project, ref)
            row = await session.get(SnapshotScheduleRow, vm.id)
        if row is None:
            raise _none(vm)
        return to_schedule(row)

    async def delete(self, caller: Caller, ref: str) -> None:
        """No more are taken, and none are pruned: those that are there stay. Raises NotFound."""
        async with change(self.db, caller, "snapshot_schedule.delete", target=ref) as unit:
            vm = await vms.find_for(unit, ref)
            row = await unit.session.get(SnapshotScheduleRow, vm.id, with_for_update=True)
            if row is None:
                raise _none(vm)
            unit.before = _facts(row)
            await unit.session.delete(row)


# -- carried out by the pipeline -------------------------------------------------------------------


async def next_due(db: Database) -> datetime | None:
    """When the next one is to be taken; one look into an index."""
    query = select(SnapshotScheduleRow.next_at).order_by(SnapshotScheduleRow.next_at).limit(1)
    async with db.read() as session:
        return await session.scalar(query)


async def due(db: Database, now: datetime) -> Sequence[SnapshotScheduleRow]:
    query = select(SnapshotScheduleRow).where(SnapshotScheduleRow.next_at <= now)
    async with db.read() as session:
        found = await session.scalars(query.order_by(SnapshotScheduleRow.next_at).limit(AT_ONCE))
        return found.all()


class _NothingToDo(Exception):
    """Another manager has done it, or there is nothing left of it."""


async def take(db: Database, seen: SnapshotScheduleRow, now: datetime) -> bool:
    """Wants the snapshot of a schedule that is due, and says when the next one is; whether there
    is one. What keeps it from being taken is noted. Several managers never take it twice: the
    VM's row is locked first, and then it is no longer due."""
    try:
        async with change(db, _for(seen), "snapshot.scheduled", target=seen.vm_id) as unit:
            vm = await unit.session.get(VmRow, seen.vm_id, with_for_update=True)
            row = await unit.session.get(SnapshotScheduleRow, seen.vm_id, with_for_update=True)
            if vm is None or row is None or row.next_at > now:
                raise _NothingToDo
            row.next_at = following(row.next_at, row.every_s, now)
            row.last_error = None
            try:
                await begin(unit, vm, None, "full", scheduled=True)
            except NexusError as error:
                row.last_error = error.message
            taken = row.last_error is None
    except _NothingToDo:
        return False
    return taken


async def prune(db: Database, vm_id: str) -> int:
    """Wants those gone that a VM's schedule made and no longer keeps; how many. One that a VM is
    being loaded from waits for the next time; diffs on top of one are made whole by its host."""
    async with db.read() as session:
        row = await session.get(SnapshotScheduleRow, vm_id)
        if row is None or not await _superfluous(session, row):
            return 0
    async with change(db, _for(row), "snapshot.prune", target=vm_id) as unit:
        going = []
        for snapshot in await _superfluous(unit.session, row, lock=True):
            try:
                await check_not_needed(unit.session, snapshot, merge=True)
            except InUse:
                continue
            discard(snapshot, unit.at)
            going.append(snapshot.name)
        unit.after = {"snapshots": going}
    return len(going)


def following(at: datetime, every_s: int, now: datetime) -> datetime:
    """The first time after ``now`` that is whole intervals after ``at``: what was missed is not
    made up for."""
    missed = max(0, int((now - at).total_seconds() // every_s))
    return at + timedelta(seconds=every_s * (missed + 1))


async def _superfluous(
    session: AsyncSession, row: SnapshotScheduleRow, *, lock: bool = False
) -> list[SnapshotRow]:
    """Beyond the newest ``keep`` that are ready; and those that failed before the newest one."""
    query = select(SnapshotRow).where(
        SnapshotRow.vm_id == row.vm_id,
        SnapshotRow.scheduled.is_(True),
        SnapshotRow.state.in_(("ready", "error")),
    )
    if lock:
        query = query.with_for_update()
    found = (await session.scalars(query.order_by(SnapshotRow.id.desc()))).all()
    ready = [snapshot for snapshot in found if snapshot.state == "ready"]
    newest = ready[0].id if ready else ""
    failed = [each for each in found if each.state == "error" and each.id < newest]
    return [*ready[row.keep :], *failed]


def _for(row: SnapshotScheduleRow) -> Caller:
    return replace(SYSTEM, project=row.project)


def _facts(row: SnapshotScheduleRow | None) -> dict[str, object] | None:
    return None if row is None else {"every": row.every_s, "keep": row.keep}


def _none(vm: VmRow) -> NotFound:
    return NotFound(
        f"VM {vm.name!r} has no snapshot schedule",
        suggestion=f"nexus snapshot schedule {vm.name} --every 6h --keep 7",
    )


def to_schedule(row: SnapshotScheduleRow) -> SnapshotSchedule:
    """A row as the API shows it."""
    return SnapshotSchedule(
        vm_id=row.vm_id,
        every=row.every_s,
        keep=row.keep,
        next_at=row.next_at,
        last_error=row.last_error,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
