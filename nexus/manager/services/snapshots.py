"""Snapshots: wanting them, finding them, deleting them. Capturing is the pipeline's."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import anyio
from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, Page
from nexus.api.errors import InUse, InvalidState, NotFound, TimedOut
from nexus.api.vm_snapshots import (
    Snapshot,
    SnapshotCreate,
    SnapshotState,
    SnapshotUpdate,
)
from nexus.manager import etags, keys
from nexus.manager.agents import Agents
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import VmRow
from nexus.manager.pipelines.snapshots import SnapshotPipeline, children
from nexus.manager.services import vms
from nexus.manager.services.snapshot_taking import begin, name_taken
from nexus.manager.services.snapshot_views import to_snapshot
from nexus.manager.uow import Caller, change
from nexus.manager.waiters import Waiters

POLL_S = 1.0
"""How often to look without a hint: another manager may do the work."""
_ON_ITS_WAY: frozenset[SnapshotState] = frozenset({"requested", "importing"})


@dataclass(frozen=True, slots=True)
class SnapshotFilter:
    """Which snapshots a list is narrowed to; all conditions have to hold."""

    vm: str | None = None
    """The id or the name of the VM they were taken of, also when it is gone."""
    name_prefix: str | None = None
    state: SnapshotState | None = None
    internal: bool = False
    """Whether those are shown that Nexus took for itself, of prebooted templates."""

    def conditions(self, project: str) -> list[ColumnElement[bool]]:
        found = [SnapshotRow.project == project]
        if not self.internal:
            found.append(SnapshotRow.template_id.is_(None))
        if self.vm is not None:
            found.append(or_(SnapshotRow.vm_id == self.vm, SnapshotRow.vm_name == self.vm))
        if self.name_prefix is not None:
            found.append(SnapshotRow.name.startswith(self.name_prefix, autoescape=True))
        if self.state is not None:
            found.append(SnapshotRow.state == self.state)
        return found


class Snapshots:
    """The rules of snapshots. Every change is one transaction, then a hint to the pipeline."""

    def __init__(
        self, db: Database, agents: Agents, pipeline: SnapshotPipeline, waiters: Waiters
    ) -> None:
        self.db = db
        self.agents = agents
        self.pipeline = pipeline
        self.waiters = waiters

    async def create(self, caller: Caller, vm_ref: str, request: SnapshotCreate) -> Snapshot:
        """Wants a snapshot of a VM that runs or is paused; the row is there before its host hears
        of it. Raises NotFound, NameTaken, or InvalidState or InUse with what to do instead."""
        try:
            async with change(self.db, caller, "snapshot.create") as unit:
                vm = await vms.find_for(unit, vm_ref)
                row = await begin(unit, vm, request.name, request.kind)
                unit.answer = lambda: Created[Snapshot](id=row.id, item=to_snapshot(row))
        except IntegrityError as error:
            raise name_taken(request.name or "") from error
        self.pipeline.hint()
        return to_snapshot(row)

    async def get(self, project: str, ref: str) -> Snapshot:
        """A snapshot by its id or name. Raises NotFound."""
        async with self.db.read() as session:
            return to_snapshot(await find(session, project, ref))

    async def done_before(self, done: keys.Done, project: str) -> Snapshot:
        """The snapshot that an earlier request with the same key asked for, as it is now.

        Raises ``done`` when it is gone.
        """
        async with self.db.read() as session:
            row = await session.get(SnapshotRow, done.ids[0])
        if row is None or row.project != project:
            raise done
        return to_snapshot(row)

    async def page(
        self, project: str, narrowed: SnapshotFilter, *, cursor: str | None, limit: int
    ) -> Page[Snapshot]:
        """Snapshots in the order they were asked for."""
        query = select(SnapshotRow).where(*narrowed.conditions(project))
        if cursor is not None:
            query = query.where(SnapshotRow.id > cursor)
        async with self.db.read() as session:
            rows = (await session.scalars(query.order_by(SnapshotRow.id).limit(limit + 1))).all()
        return Page(
            items=[to_snapshot(row) for row in rows[:limit]],
            next_cursor=rows[limit - 1].id if len(rows) > limit else None,
        )

    async def of_vm(
        self, project: str, vm_ref: str, *, cursor: str | None, limit: int
    ) -> Page[Snapshot]:
        """The snapshots of one VM. Raises NotFound when there is no such VM."""
        async with self.db.read() as session:
            vm = await vms.find(session, project, vm_ref)
        return await self.page(project, SnapshotFilter(vm=vm.id), cursor=cursor, limit=limit)

    async def rename(self, caller: Caller, ref: str, request: SnapshotUpdate) -> Snapshot:
        """Raises NotFound, NameTaken, PreconditionFailed."""
        try:
            async with change(self.db, caller, "snapshot.update", target=ref) as unit:
                row = await find(unit.session, caller.project, ref, lock=True)
                unit.target, unit.before = row.id, {"name": row.name}
                etags.expect(caller.if_match, to_snapshot(row), f"the snapshot {row.name!r}")
                if request.name != row.name:
                    row.name, row.updated_at = request.name, unit.at
                unit.after = {"name": row.name}
        except IntegrityError as error:
            raise name_taken(request.name) from error
        return to_snapshot(row)

    async def delete(self, caller: Caller, ref: str, *, merge: bool = False) -> Snapshot:
        """Wants a snapshot gone, with its files; asking twice is asking once.

        VMs that were loaded from it have what they need. With ``merge`` its host makes diffs on
        top of it whole first. Raises NotFound, InvalidState, or InUse with what needs it: such
        diffs, and VMs that are being loaded or have no disks yet.
        """
        await self._look_at_children(caller.project, ref)
        async with change(self.db, caller, "snapshot.delete", target=ref) as unit:
            row = await find(unit.session, caller.project, ref, lock=True)
            unit.target, unit.before = row.id, {"name": row.name, "state": row.state}
            etags.expect(caller.if_match, to_snapshot(row), f"the snapshot {row.name!r}")
            if row.state == "importing":
                raise InvalidState(
                    f"the snapshot {row.name!r} is being imported",
                    suggestion="end the import, then delete what is left of it",
                )
            await check_not_needed(unit.session, row, merge=merge)
            discard(row, unit.at)
        self.pipeline.hint()
        return to_snapshot(row)

    async def settled(self, snapshot: Snapshot, timeout_s: float) -> Snapshot:
        """The snapshot once it is ready or has failed. Raises TimedOut, or NotFound if it is gone
        by then."""

        async def look() -> Snapshot | None:
            seen = await self.get(snapshot.project, snapshot.id)
            return None if seen.state in _ON_ITS_WAY else seen

        with anyio.move_on_after(timeout_s):
            while True:
                with self.waiters.listen(snapshot.id) as woken:
                    if (seen := await look()) is not None:
                        return seen
                    with anyio.move_on_after(POLL_S):
                        await woken.wait()
        raise TimedOut(
            f"the snapshot {snapshot.name!r} is not ready after {timeout_s:g} s; it goes on",
            suggestion=f"nexus snapshot show {snapshot.name}",
        )

    async def gone(self, snapshot: Snapshot, timeout_s: float) -> None:
        """Returns when a snapshot that is being deleted is gone. Raises TimedOut, or InvalidState
        with why its host refused."""
        with anyio.move_on_after(timeout_s):
            while True:
                with self.waiters.listen(snapshot.id) as woken:
                    async with self.db.read() as session:
                        row = await session.get(SnapshotRow, snapshot.id)
                    if row is None:
                        return
                    if row.state != "deleting":
                        raise InvalidState(
                            f"the snapshot {row.name!r} was not deleted: "
                            f"{row.error.message if row.error else row.state}",
                            suggestion=f"nexus snapshot show {row.name}",
                        )
                    with anyio.move_on_after(POLL_S):
                        await woken.wait()
        raise TimedOut(
            f"the snapshot {snapshot.name!r} is not gone after {timeout_s:g} s; it goes on",
            suggestion=f"nexus snapshot show {snapshot.name}",
        )

    async def _look_at_children(self, project: str, ref: str) -> None:
        """Asks the host whether diffs on top of a snapshot still need it: chains are merged there
        in the background."""
        async with self.db.read() as session:
            row = await find(session, project, ref)
            found = await children(session, row.id)
        await self.pipeline.look_at(found)


def discard(row: SnapshotRow, now: datetime) -> None:
    """Wants a locked snapshot gone; the pipeline does it."""
    if row.state != "deleting":
        row.state, row.error, row.updated_at = "deleting", None, now
        row.next_attempt_at, row.attempts = now, 0


async def check_not_needed(session: AsyncSession, row: SnapshotRow, *, merge: bool) -> None:
    """Raises InUse with what would be broken without this snapshot."""
    is_being_loaded = and_(
        VmRow.origin_boot == VmRow.boot,
        VmRow.unsettled.is_(True),
        VmRow.power.in_(("running", "paused")),
    )
    # One that was stopped or failed before its host had placed its disks: its next start does.
    has_no_disks = and_(VmRow.configured_at.is_(None), VmRow.power != "deleted")
    needing = select(VmRow.name).where(
        VmRow.origin_id == row.id, or_(is_being_loaded, has_no_disks)
    )
    names = (await session.scalars(needing.order_by(VmRow.id).limit(4))).all()
    if names:
        raise InUse(
            f"VM {_some(names)} has not got everything from the snapshot {row.name!r} yet",
            suggestion="wait until it runs or is configured (nexus ls), or delete it: "
            f"nexus rm {names[0]}",
        )
    diffs = [] if merge else [child.name for child in await children(session, row.id)]
    if diffs:
        raise InUse(
            f"the snapshot {row.name!r} is what the diff {_some(diffs)} is the difference to",
            suggestion=f"delete that first, or have it made whole: nexus snapshot rm --merge "
            f"{row.name}",
        )


async def find(session: AsyncSession, project: str, ref: str, *, lock: bool = False) -> SnapshotRow:
    """A snapshot's row by id or name. Raises NotFound."""
    query = select(SnapshotRow).where(SnapshotRow.project == project)
    if lock:
        query = query.with_for_update()
    row = (await session.scalars(query.where(SnapshotRow.id == ref))).one_or_none()
    if row is None:
        row = (await session.scalars(query.where(SnapshotRow.name == ref))).one_or_none()
    if row is None:
        raise NotFound(f"there is no snapshot {ref!r}", suggestion="nexus snapshot ls")
    return row


async def find_ready(session: AsyncSession, project: str, ref: str) -> SnapshotRow:
    """A snapshot that VMs can be loaded from, locked so that it is not deleted meanwhile.

    Raises NotFound, InvalidState.
    """
    row = await find(session, project, ref, lock=True)
    if row.state != "ready":
        because = f": {row.error.message}" if row.error else ""
        raise InvalidState(
            f"the snapshot {row.name!r} is {row.state}{because}",
            suggestion=f"nexus snapshot show {row.name}",
        )
    return row


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
