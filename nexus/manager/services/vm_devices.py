"""Changing drives, NICs and the balloon of VMs.

A change alters what is wanted and raises the generation; the pipeline sends the whole machine, and
the agent tells a VMM that runs what is new to it. A VM that does not run has it at its next boot.
"""

from nexus.api.devices import ROOT_DRIVE, BalloonChange, DriveChange, NicChange
from nexus.api.errors import Conflict, InvalidState, NexusError, NoCapacity, VmmFault
from nexus.api.quotas import Resources
from nexus.api.vms import Vm
from nexus.manager import devices, wanting
from nexus.manager.db.columns import StoredDrive
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services import quotas
from nexus.manager.services.vms import find_for, to_vm
from nexus.manager.uow import Caller, UnitOfWork, change


class VmDevices:
    """Every change is one transaction, then a start of the pipeline. Asking for what is wanted
    already changes nothing."""

    def __init__(self, db: Database, pipeline: VmPipeline) -> None:
        self.db = db
        self.pipeline = pipeline

    async def change_drive(self, ref: str, name: str, wish: DriveChange, caller: Caller) -> Vm:
        """Raises NotFound, InvalidState, NoCapacity, QuotaExceeded, or Conflict for a size that
        cannot be."""
        async with change(self.db, caller, "vm.drive", target=ref) as unit:
            row = await _found(unit, ref)
            old = next((drive for drive in _drives(row) if drive.name == name), None)
            if old is None:
                raise devices.not_there("drive", name, row.name, [d.name for d in _drives(row)])
            new = devices.changed_drive(old, wish)
            if new != old:
                grown_mib = devices.present_size(new) - devices.present_size(old)
                await check_disk(unit, row, grown_mib, new.own_mib - old.own_mib)
                if name == ROOT_DRIVE:
                    row.rootfs_size_mib, row.rootfs_limits = new.size_mib, new.limits
                else:
                    row.drives = [new if drive.name == name else drive for drive in row.drives]
                unit.before, unit.after = _noted(name, old), _noted(name, new)
                self._want(unit, row, "drive_changed", f"drive {name}: {_in_words(new)}")
        return self._begun(row, unit)

    async def change_nic(self, ref: str, iface: str, wish: NicChange, caller: Caller) -> Vm:
        """Raises NotFound or InvalidState."""
        async with change(self.db, caller, "vm.nic", target=ref) as unit:
            row = await _found(unit, ref)
            old = next((nic for nic in row.nics if nic.iface == iface), None)
            if old is None:
                raise devices.not_there("NIC", iface, row.name, [nic.iface for nic in row.nics])
            new = old.model_copy(update={"limits": devices.merged(old.limits, wish.limits)})
            if new != old:
                row.nics = [new if nic.iface == iface else nic for nic in row.nics]
                limits = new.limits.model_dump(exclude_none=True) if new.limits else {}
                unit.before = {iface: old.limits.model_dump() if old.limits else None}
                unit.after = {iface: new.limits.model_dump() if new.limits else None}
                said = ", ".join(f"{key} {value:g}" for key, value in limits.items())
                self._want(unit, row, "nic_changed", f"NIC {iface}: {said or 'no limits'}")
        return self._begun(row, unit)

    async def change_balloon(self, ref: str, wish: BalloonChange, caller: Caller) -> Vm:
        """Raises NotFound, InvalidState, ValidationFailed, or Conflict for a VM without one."""
        async with change(self.db, caller, "vm.balloon", target=ref) as unit:
            row = await _found(unit, ref)
            if row.balloon is None:
                raise Conflict(
                    f"VM {row.name!r} has no balloon",
                    suggestion="a VM is given one when it is made: nexus run --balloon 0",
                )
            devices.check_balloon(wish.target_mib, row.mem_mib)
            if wish.target_mib != row.balloon.target_mib:
                unit.before = {"balloon_mib": row.balloon.target_mib}
                unit.after = {"balloon_mib": wish.target_mib}
                row.balloon = row.balloon.model_copy(update={"target_mib": wish.target_mib})
                said = f"the guest is to give back {wish.target_mib} MiB"
                self._want(unit, row, "balloon_changed", said)
        return self._begun(row, unit)

    def _begun(self, row: VmRow, unit: UnitOfWork) -> Vm:
        if unit.after is not None:
            self.pipeline.begin(row)
        return to_vm(row)

    def _want(self, unit: UnitOfWork, row: VmRow, reason: str, message: str) -> None:
        wanting.change(unit, row, reason, message)
        self.pipeline.take(row, unit.at)


async def _found(unit: UnitOfWork, ref: str) -> VmRow:
    row = await find_for(unit, ref)
    if row.power == "deleted":
        raise InvalidState(f"VM {row.name!r} is being deleted", suggestion="nexus ls")
    return row


def _drives(row: VmRow) -> list[StoredDrive]:
    return [row.root, *row.drives] if row.root is not None else row.drives


async def check_disk(unit: UnitOfWork, row: VmRow, grown_mib: int, own_mib: int) -> None:
    """A VM's disks together are never larger than its host's, nor are those of a project larger
    than it may have; ``own_mib`` of it are new to the project. Raises NoCapacity, QuotaExceeded."""
    if grown_mib <= 0:
        return
    await quotas.admit(unit.session, row.project, Resources(disk_mib=max(0, own_mib)))
    host = await unit.session.get(HostRow, row.host_id)
    total = sum(map(devices.present_size, _drives(row))) + grown_mib
    if host is not None and total > host.capacity.disk_mib:
        raise NoCapacity(
            f"the disks of VM {row.name!r} would have {total} MiB, and its host has "
            f"{host.capacity.disk_mib} MiB",
            suggestion="ask for less",
        )


def _noted(name: str, drive: StoredDrive) -> dict[str, object]:
    return {name: drive.model_dump(mode="json", include={"size_mib", "limits"})}


def _in_words(drive: StoredDrive) -> str:
    limits = drive.limits.model_dump(exclude_none=True) if drive.limits else {}
    said = ", ".join(f"{key} {value:g}" for key, value in limits.items())
    return f"{devices.present_size(drive)} MiB, {said or 'no limits'}"


def refusal_of(vm: Vm) -> NexusError | None:
    """Why what is wanted of a VM's devices was not carried out, as an error for who waited."""
    error = vm.devices_error
    if error is None:
        return None
    kind = VmmFault if error.fault_message else Conflict
    return kind(
        f"VM {vm.name!r}: {error.message}",
        suggestion=error.suggestion,
        fault_message=error.fault_message,
    )
