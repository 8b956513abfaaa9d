"""Giving volumes to VMs that are there, and taking them back.

A VMM gets its drives when it starts and keeps them until it ends, so both are for a VM that does
not run, or they reboot it. What is wanted changes at once. A volume that is taken back is free
when the VM's host says that it has let go of it: once the generation in ``leaving`` is settled.
"""

from nexus.api.common import Item
from nexus.api.errors import Conflict, InvalidState
from nexus.api.vms import Vm
from nexus.api.volumes import Volume, VolumeAttach
from nexus.manager import devices, etags, lifecycle, wanting
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow, VolumeRow
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services.vm_devices import check_disk
from nexus.manager.services.vms import find as find_vm
from nexus.manager.services.vms import to_vm
from nexus.manager.services.volume_rows import (
    Holder,
    check_free,
    check_whole,
    find,
    give,
    holder_of,
    still_held,
    to_volume,
)
from nexus.manager.services.volumes import locked
from nexus.manager.uow import Caller, UnitOfWork, change

REBOOT_GRACE_S = 10.0


class VolumeAttachments:
    """Asking for what is so already changes nothing. Both answer the volume, and the VM that has
    to be told of it, if one has."""

    def __init__(self, db: Database, pipeline: VmPipeline) -> None:
        self.db = db
        self.pipeline = pipeline

    async def attach(
        self, caller: Caller, ref: str, wanted: VolumeAttach
    ) -> tuple[Volume, Vm | None]:
        """Raises NotFound, InUse, NoCapacity, PreconditionFailed, InvalidState for a VM that runs,
        or Conflict for one on another host or with too many drives."""
        async with change(self.db, caller, "volume.attach", target=ref) as unit:
            vm = await find_vm(unit.session, caller.project, wanted.vm, lock=True)
            row = await find(unit.session, caller.project, ref, lock=True)
            unit.target = row.id
            holder = await holder_of(unit.session, row)
            etags.expect(caller.if_match, to_volume(row, holder), f"the volume {row.name!r}")
            told = not _has_it(row, holder, vm, wanted)
            if told:
                await _add_drive(unit, row, holder, vm, wanted)
                said = f"volume {row.name} attached{' read-only' if wanted.read_only else ''}"
                self._want(unit, vm, "volume_attached", said, restart=wanted.restart)
            seen = _seen(unit, row, vm)
        if told:
            self.pipeline.begin(vm)
        return seen, to_vm(vm) if told else None

    async def detach(self, caller: Caller, ref: str, *, restart: bool) -> tuple[Volume, Vm | None]:
        """Raises NotFound, PreconditionFailed, or InvalidState for a VM that runs."""
        async with change(self.db, caller, "volume.detach", target=ref) as unit:
            row, vm = await locked(unit, ref)
            holder = await holder_of(unit.session, row)
            etags.expect(caller.if_match, to_volume(row, holder), f"the volume {row.name!r}")
            told = vm is not None and holder is not None and row.leaving is None
            if vm is not None and told:
                vm.drives = [
                    drive
                    for drive in vm.drives
                    if drive.volume is None or drive.volume.id != row.id
                ]
                said = f"volume {row.name} detached"
                self._want(unit, vm, "volume_detached", said, restart=restart)
                row.leaving, row.updated_at = vm.generation, unit.at
                unit.before, unit.after = {"vm_id": vm.id}, {"vm_id": None}
            seen = _seen(unit, row, vm)
        if vm is None or not told:
            return seen, None
        self.pipeline.begin(vm)
        return seen, to_vm(vm)

    def _want(
        self, unit: UnitOfWork, vm: VmRow, reason: str, message: str, *, restart: bool
    ) -> None:
        """Has the VM's host told, with a reboot if it runs. Raises InvalidState."""
        if vm.power == "deleted":
            raise InvalidState(f"VM {vm.name!r} is being deleted", suggestion="nexus ls")
        if lifecycle.at_rest(vm.state, vm.power, vm.restart_at):
            wanting.change(unit, vm, reason, message)
        elif restart and vm.state in ("running", "paused"):
            because = (reason, f"{message}, rebooting")
            wanting.act(unit, vm, "reboot", stop_timeout_s=REBOOT_GRACE_S, because=because)
        else:
            raise InvalidState(
                f"VM {vm.name!r} is {vm.state}, and a VM gets and gives back drives only while "
                "it is stopped",
                suggestion=f"nexus stop {vm.name} first, or reboot it with --reboot "
                "(restart in the request)",
            )
        self.pipeline.take(vm, unit.at)


def _has_it(row: VolumeRow, holder: Holder | None, vm: VmRow, wanted: VolumeAttach) -> bool:
    """Whether the volume is that VM's as it was asked for."""
    if holder is None or holder.id != vm.id or row.leaving is not None:
        return False
    drive = next(d for d in vm.drives if d.volume is not None and d.volume.id == row.id)
    return drive.read_only == wanted.read_only and wanted.name in (None, drive.name)


async def _add_drive(
    unit: UnitOfWork, row: VolumeRow, holder: Holder | None, vm: VmRow, wanted: VolumeAttach
) -> None:
    if row.leaving is None or holder is None or holder.id != vm.id:
        check_free(row, holder)
    check_whole(row)
    if vm.host_id != row.host_id:
        raise Conflict(
            f"the volume {row.name!r} and VM {vm.name!r} are on different hosts",
            suggestion="nexus volume show and nexus show say which; make a VM with it: "
            f"nexus run --drive NAME,volume={row.name}",
        )
    name = wanted.name or devices.drive_name(row.name)
    drive = devices.volume_drive(name, row, read_only=wanted.read_only)
    devices.check_another(vm.name, vm.drives, len(vm.nics), vm.balloon is not None, drive)
    await check_disk(unit, vm, row.size_mib, own_mib=0)
    unit.before, unit.after = {"vm_id": None}, {"vm_id": vm.id, "drive": name}
    vm.drives = [*vm.drives, drive]
    give(row, vm.id, unit.at)


def _seen(unit: UnitOfWork, row: VolumeRow, vm: VmRow | None) -> Volume:
    """The volume as it is now, which is also what a repeated request answers."""
    holder = None
    if vm is not None:
        holder = still_held(row, Holder(vm.id, vm.name, vm.settled_generation, vm.drives))
    volume = to_volume(row, holder)
    unit.answer = lambda: Item[Volume](item=volume)
    return volume
