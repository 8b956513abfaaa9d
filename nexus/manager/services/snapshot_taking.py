"""A snapshot's first moment: whether it can be taken of a VM, and the row that asks for it."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import InUse, InvalidState, NameTaken
from nexus.api.quotas import Resources
from nexus.api.snapshots import SnapshotKind
from nexus.ids import new_id
from nexus.manager import blueprints
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import VmRow
from nexus.manager.services import quotas
from nexus.manager.uow import UnitOfWork


async def begin(
    unit: UnitOfWork,
    vm: VmRow,
    name: str | None,
    kind: SnapshotKind,
    *,
    scheduled: bool = False,
) -> SnapshotRow:
    """The row of a snapshot that is to be taken of a locked VM, with its event.

    Raises NameTaken, InvalidState, InUse or QuotaExceeded.
    """
    session = unit.session
    check_can_capture(vm)
    await check_alone(session, vm)
    snapshot_id, blueprint = new_id(), blueprints.of_vm(vm)
    await quotas.admit(session, vm.project, Resources(disk_mib=blueprint.snapshot_mib))
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
        blueprint=blueprint,
        disk_mib=blueprint.snapshot_mib,
        scheduled=scheduled,
        wanted_by=unit.caller.actor,
        wanted_in=unit.caller.request_id,
        created_at=unit.at,
        updated_at=unit.at,
        next_attempt_at=unit.at,
        attempts=0,
    )
    await check_name(session, row.project, row.name)
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


def name_taken(name: str) -> NameTaken:
    return NameTaken(
        f"there is a snapshot named {name!r} already",
        suggestion=f"choose another name, or: nexus snapshot rm {name}",
    )


async def check_name(session: AsyncSession, project: str, name: str) -> None:
    query = select(SnapshotRow.id).where(SnapshotRow.project == project, SnapshotRow.name == name)
    if await session.scalar(query) is not None:
        raise name_taken(name)


async def check_alone(session: AsyncSession, vm: VmRow) -> None:
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
    """What a diff is the difference to: the VM's last snapshot of the boot that runs now, or the
    one that this boot was loaded from. The host knows best, and refuses any other."""
    if not vm.track_dirty_pages:
        raise InvalidState(
            f"VM {vm.name!r} does not keep track of what changes in its memory",
            suggestion="take a full one, or make VMs with track_dirty_pages (--track-dirty)",
        )
    ready = select(SnapshotRow).where(SnapshotRow.state == "ready").with_for_update()
    of_vm = ready.where(SnapshotRow.vm_id == vm.id).order_by(SnapshotRow.id.desc()).limit(1)
    last = await session.scalar(of_vm)
    if last is not None and _is_of_this_boot(last, vm):
        return last
    if vm.origin is not None and vm.origin.boot == vm.boot:
        loaded_from = await session.scalar(ready.where(SnapshotRow.id == vm.origin.id))
        if loaded_from is not None:
            return loaded_from
    raise InvalidState(
        f"VM {vm.name!r} has no snapshot of this boot that a diff could be made to",
        suggestion=f"take a full one first: nexus snapshot create {vm.name}",
    )


def _is_of_this_boot(row: SnapshotRow, vm: VmRow) -> bool:
    if row.held is None:
        return False
    return vm.started_at is None or row.held.taken_at >= vm.started_at
