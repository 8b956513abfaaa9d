"""Snapshots: wanting them, finding them, deleting them. Capturing is the pipeline's."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import anyio
from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, Page
from nexus.api.errors import InUse, InvalidState, NameTaken, NexusError, NotFound, TimedOut
from nexus.api.snapshots import SnapshotKind
from nexus.api.vm_snapshots import (
    Snapshot,
    SnapshotCreate,
    SnapshotState,
    SnapshotUpdate,
)
from nexus.ids import new_id
from nexus.manager import blueprints, etags
from nexus.manager.agents import Agents
from nexus.manager.db.session import Database
from nexus.manager.db.tables import SnapshotRow, VmRow
from nexus.manager.pipelines.snapshots import SnapshotPipeline
from nexus.manager.services import vms
from nexus.manager.services.snapshot_views import to_snapshot
from nexus.manager.uow import Caller, UnitOfWork, change
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

    def conditions(self, project: str) -> list[ColumnElement[bool]]:
        found = [SnapshotRow.project == project]
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

    async def delete(self, caller: Caller, ref: str) -> Snapshot:
        """Wants a snapshot gone, with its files; asking twice is asking once.

        VMs that were loaded from it have what they need. Raises NotFound, InvalidState, or InUse
        with what needs it: diffs on top of it, and VMs that are being loaded.
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
            needed_by = await needs(unit.session, row)
            if needed_by:
                raise InUse(
                    f"the snapshot {row.name!r} is needed by {' and '.join(needed_by)}",
                    suggestion="delete those first, or wait until the VMs run",
                )
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
            children = [child for child in await _children(session, row) if child.held is not None]
        for child in children:
            try:
                held = await self.agents.of(child.host_id).get_snapshot(child.id)
            except NexusError:
                continue  # then it counts as needed
            if held != child.held:
                async with self.db.write() as session:
                    known = await session.get(SnapshotRow, child.id, with_for_update=True)
                    if known is not None and known.state == "ready":
                        known.held, known.needs_parent = held, held.needs_parent


async def begin(
    unit: UnitOfWork,
    vm: VmRow,
    name: str | None,
    kind: SnapshotKind,
    *,
    scheduled: bool = False,
) -> SnapshotRow:
    """The row of a snapshot that is to be taken of a locked VM, with its event.

    Raises NameTaken, InvalidState or InUse.
    """
    session = unit.session
    check_can_capture(vm)
    await _check_alone(session, vm)
    snapshot_id = new_id()
    row = SnapshotRow(
        id=snapshot_id,
        project=vm.project,
        name=name or await _made_up(session, vm, unit.at, snapshot_id),
        vm_id=vm.id,
        vm_name=vm.name,
        host_id=vm.host_id,
        engine=vm.engine,
        kind=kind,
        parent_id=(await _parent_of(session, vm)).id if kind == "diff" else None,
        needs_parent=kind == "diff",
        state="requested",
        blueprint=blueprints.of_vm(vm),
        scheduled=scheduled,
        wanted_by=unit.caller.actor,
        wanted_in=unit.caller.request_id,
        created_at=unit.at,
        updated_at=unit.at,
        next_attempt_at=unit.at,
        attempts=0,
    )
    await _check_name(session, row.project, row.name)
    session.add(row)
    await session.flush()
    unit.target = row.id
    unit.after = {"name": row.name, "vm": vm.id, "kind": kind}
    unit.event(vm, vm.state, "snapshot_requested", f"snapshot {row.name} is to be taken")
    return row


def check_can_capture(vm: VmRow) -> None:
    """Raises InvalidState for a VM that no snapshot can be taken of."""
    if vm.power == "deleted":
        raise InvalidState(f"VM {vm.name!r} is being deleted", suggestion="nexus ls")
    if vm.state not in ("running", "paused") or vm.power == "stopped":
        cure = f"nexus start {vm.name}" if vm.state in _AT_REST else f"nexus show {vm.name}"
        raise InvalidState(
            f"VM {vm.name!r} is {vm.state}: a snapshot holds the memory of a VM that runs or is "
            "paused",
            suggestion=f"{cure}, then take it",
        )
    owned = [drive.volume.name for drive in vm.drives if drive.volume is not None]
    if owned:
        raise InvalidState(
            f"VM {vm.name!r} has the volume {owned[0]!r}, which cannot be in two VMs: no clone "
            "could have it",
            suggestion="keep what is to be snapshotted on drives of the VM itself: "
            "--drive NAME,size=SIZE",
        )


_AT_REST = frozenset({"configured", "stopped", "error"})


def discard(row: SnapshotRow, now: datetime) -> None:
    """Wants a locked snapshot gone; the pipeline does it."""
    if row.state != "deleting":
        row.state, row.error, row.updated_at = "deleting", None, now
        row.next_attempt_at, row.attempts = now, 0


async def needs(session: AsyncSession, row: SnapshotRow) -> list[str]:
    """What would be broken without this snapshot, in words."""
    diffs = [child.name for child in await _children(session, row)]
    loading = select(VmRow.name).where(
        VmRow.origin_id == row.id,
        VmRow.origin_boot == VmRow.boot,
        VmRow.unsettled.is_(True),
        VmRow.power.in_(("running", "paused")),
    )
    names = (await session.scalars(loading.order_by(VmRow.id).limit(4))).all()
    found = [f"the diff {_some(diffs)}"] if diffs else []
    return found + ([f"VM {_some(names)}, which is being loaded from it"] if names else [])


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


def name_taken(name: str) -> NameTaken:
    return NameTaken(
        f"there is a snapshot named {name!r} already",
        suggestion=f"choose another name, or: nexus snapshot rm {name}",
    )


async def _check_name(session: AsyncSession, project: str, name: str) -> None:
    query = select(SnapshotRow.id).where(SnapshotRow.project == project, SnapshotRow.name == name)
    if await session.scalar(query) is not None:
        raise name_taken(name)


async def _check_alone(session: AsyncSession, vm: VmRow) -> None:
    """The unique index decides; this is the friendlier word for it."""
    query = select(SnapshotRow.name).where(
        SnapshotRow.vm_id == vm.id, SnapshotRow.state == "requested"
    )
    other = await session.scalar(query)
    if other is not None:
        raise InUse(
            f"the snapshot {other!r} of VM {vm.name!r} is being taken",
            suggestion=f"wait for it: nexus snapshot show {other}",
        )


async def _made_up(session: AsyncSession, vm: VmRow, at: datetime, snapshot_id: str) -> str:
    name = f"{vm.name[:40].rstrip('-')}-{at:%Y%m%d-%H%M%S}"
    query = select(SnapshotRow.id).where(
        SnapshotRow.project == vm.project, SnapshotRow.name == name
    )
    taken = await session.scalar(query) is not None
    return f"{name}-{snapshot_id[-6:]}" if taken else name


async def _parent_of(session: AsyncSession, vm: VmRow) -> SnapshotRow:
    """What a diff is the difference to: the VM's last snapshot, of the boot that runs now."""
    if not vm.track_dirty_pages:
        raise InvalidState(
            f"VM {vm.name!r} does not keep track of what changes in its memory",
            suggestion="take a full one, or make VMs with track_dirty_pages (--track-dirty)",
        )
    query = select(SnapshotRow).where(SnapshotRow.vm_id == vm.id, SnapshotRow.state == "ready")
    last = await session.scalar(query.order_by(SnapshotRow.id.desc()).limit(1).with_for_update())
    taken_at = last.held.taken_at if last is not None and last.held is not None else None
    if last is None or taken_at is None or (vm.started_at and taken_at < vm.started_at):
        raise InvalidState(
            f"VM {vm.name!r} has no snapshot of this boot that a diff could be made to",
            suggestion=f"take a full one first: nexus snapshot create {vm.name}",
        )
    return last


async def _children(session: AsyncSession, row: SnapshotRow) -> Sequence[SnapshotRow]:
    query = select(SnapshotRow).where(SnapshotRow.parent_id == row.id, SnapshotRow.state != "error")
    return (await session.scalars(query.order_by(SnapshotRow.id))).all()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
