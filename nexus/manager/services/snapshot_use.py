"""What snapshots are for: new VMs made from one, and a VM put back to one of its own."""

from collections.abc import Sequence
from datetime import UTC, datetime

from nexus.api.common import Item
from nexus.api.devices import NicCreate
from nexus.api.errors import Conflict, InvalidState, ValidationFailed
from nexus.api.quotas import Resources
from nexus.api.vm_snapshots import SnapshotClone, VmRestore
from nexus.api.vms import Vm
from nexus.manager import lifecycle, wanting
from nexus.manager.db.columns import Blueprint, StoredOrigin
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services import quotas, vms
from nexus.manager.services.snapshot_taking import check_alone
from nexus.manager.services.snapshots import find_ready
from nexus.manager.services.vm_creation import Order, VmCreation, created, names_of
from nexus.manager.services.vm_expiry import deadline
from nexus.manager.uow import Caller, UnitOfWork, change


class SnapshotUse:
    """The rules of loading. A VM's row says which of its boots is loaded, and from what."""

    def __init__(self, db: Database, creation: VmCreation, pipeline: VmPipeline) -> None:
        self.db = db
        self.creation = creation
        self.pipeline = pipeline

    async def instantiate(self, caller: Caller, ref: str, request: SnapshotClone) -> list[Vm]:
        """Makes VMs from a snapshot, on its host: all of them or none.

        Raises NotFound, InvalidState, ValidationFailed, and what ``VmCreation.make`` raises.
        """
        deadline(datetime.now(UTC), request.ttl, request.expires_at)
        names = names_of(request)

        async def draw(unit: UnitOfWork) -> Order:
            row = await find_ready(unit.session, caller.project, ref)
            await _check_engine(unit, row)
            return order_of(row, request, names, unit.at)

        return await self.creation.make(
            caller, "snapshot.instantiate", draw, lambda made: created(request, made)
        )

    async def restore(self, caller: Caller, vm_ref: str, request: VmRestore) -> Vm:
        """Has a VM go on from one of its own snapshots: its memory and disks are what they were
        then, its addresses stay. What it does now is ended at once.

        Raises NotFound, InvalidState, or Conflict for a snapshot of another VM.
        """
        async with change(self.db, caller, "vm.restore", target=vm_ref) as unit:
            vm = await vms.find_for(unit, vm_ref)
            row = await find_ready(unit.session, caller.project, request.snapshot)
            if row.vm_id != vm.id:
                raise Conflict(
                    f"the snapshot {row.name!r} is not of VM {vm.name!r} but of {row.vm_name!r}",
                    suggestion=f"make a VM from it: nexus snapshot clone {row.name}",
                )
            await _check_engine(unit, row)
            await check_alone(unit.session, vm)
            await _check_fits(unit, vm, row.blueprint)
            unit.before = wanting.shown(vm)
            _put_back(unit, vm, row, "running" if request.start else "paused")
            unit.after = {**wanting.shown(vm), "snapshot": row.id}
            unit.answer = lambda: Item[Vm](item=vms.to_vm(vm))
            self.pipeline.take(vm, unit.at)
        self.pipeline.begin(vm)
        return vms.to_vm(vm)


def order_of(
    row: SnapshotRow, request: SnapshotClone, names: Sequence[str | None], now: datetime
) -> Order:
    """What a request to clone asks for. Raises ValidationFailed."""
    return Order(
        _with_terms(row.blueprint, request),
        names,
        power="running" if request.start else "paused",
        boot=1,
        expires_at=deadline(now, request.ttl, request.expires_at),
        host_id=row.host_id,
        origin=StoredOrigin(id=row.id, name=row.name, boot=1),
        because=f"requested from the snapshot {row.name}",
    )


def _with_terms(blueprint: Blueprint, request: SnapshotClone) -> Blueprint:
    changed: dict[str, object] = {}
    if request.tags is not None:
        changed["tags"] = request.tags
    if request.restart_policy is not None:
        changed["restart_policy"] = request.restart_policy
    if request.networks is not None:
        if len(request.networks) != len(blueprint.nics):
            raise ValidationFailed(
                f"networks: {len(request.networks)} are named, and the snapshot has "
                f"{len(blueprint.nics)} NICs",
                suggestion="name one for each, in their order",
            )
        changed["nics"] = [
            NicCreate(network=network, limits=nic.limits)
            for network, nic in zip(request.networks, blueprint.nics, strict=True)
        ]
    return blueprint.model_copy(update=changed)


_AS_IT_WAS = (
    "vcpu",
    "mem_mib",
    "kernel",
    "initrd",
    "kernel_args",
    "rootfs",
    "rootfs_size_mib",
    "user_data",
    "vendor_data",
    "config_drive",
    "ssh_keys",
)
"""What a VM's memory and disks were made with. The rest is the VM's as it is now: its name, tags,
addresses, limits and terms."""


def _put_back(unit: UnitOfWork, vm: VmRow, row: SnapshotRow, power: lifecycle.LoadedPower) -> None:
    situation = lifecycle.Situation(vm.name, vm.state, vm.power, vm.boot, not vm.unsettled)
    wanted = lifecycle.restore(situation, power)
    vm.power, vm.boot = wanted.power, wanted.boot
    vm.origin_id, vm.origin_name, vm.origin_boot = row.id, row.name, wanted.boot
    vm.identity = None
    then = row.blueprint
    limits = {drive.name: drive.limits for drive in vm.drives}
    vm.drives = [
        drive.model_copy(update={"limits": limits.get(drive.name, drive.limits)})
        for drive in then.drives
    ]
    if then.balloon is None or vm.balloon is None:
        vm.balloon = then.balloon
    for name in _AS_IT_WAS:
        if getattr(vm, name) != getattr(then, name):
            setattr(vm, name, getattr(then, name))
    wanting.anew(unit, vm)
    vm.state, vm.error = wanted.state, None
    said = f"it is put back to the snapshot {row.name}"
    unit.event(vm, wanted.state, "restore_requested", said)


async def _check_fits(unit: UnitOfWork, vm: VmRow, then: Blueprint) -> None:
    """Raises InvalidState for a VM that has a volume by now, or QuotaExceeded for one that would
    be larger than it is."""
    since = [drive.volume.name for drive in vm.drives if drive.volume is not None]
    if since:
        raise InvalidState(
            f"VM {vm.name!r} has got the volume {since[0]!r} since, which the snapshot knows "
            "nothing of",
            suggestion=f"nexus volume detach {since[0]}, then restore",
        )
    disk_mib = sum(drive.own_mib for drive in then.every_drive)
    more = Resources(
        vcpu=max(0, then.vcpu - vm.vcpu),
        mem_mib=max(0, then.mem_mib - vm.mem_mib),
        disk_mib=max(0, disk_mib - vm.disk_mib),
    )
    await quotas.admit(unit.session, vm.project, more)


async def _check_engine(unit: UnitOfWork, row: SnapshotRow) -> None:
    """What the manager knows of it; the host looks at VMM and CPU before it touches anything."""
    host = await unit.session.get(HostRow, row.host_id)
    if host is not None and host.engine != row.engine:
        raise InvalidState(
            f"the snapshot {row.name!r} was taken with {row.engine}, and its host runs "
            f"{host.engine} now",
            suggestion=f"run the host's agent with {row.engine} again (nexus host ls)",
        )
