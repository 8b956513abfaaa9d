"""What clones of a VM are made of, as pure functions."""

from nexus.api.devices import NicCreate
from nexus.api.machines import Machine
from nexus.manager.db.columns import Blueprint
from nexus.manager.db.tables import VmRow


def of_vm(vm: VmRow) -> Blueprint:
    """A VM as it is wanted now. Its addresses are left out: each clone gets its own."""
    return Blueprint(
        vcpu=vm.vcpu,
        mem_mib=vm.mem_mib,
        kernel=vm.kernel,
        initrd=vm.initrd,
        rootfs=vm.rootfs,
        kernel_args=vm.kernel_args,
        rootfs_size_mib=vm.rootfs_size_mib,
        rootfs_limits=vm.rootfs_limits,
        drives=vm.drives,
        nics=[
            # The host's own network is another one on each host.
            NicCreate(network=None if nic.home else nic.network_id, limits=nic.limits)
            for nic in vm.nics
        ],
        balloon=vm.balloon,
        tags=vm.tags,
        user_data=vm.user_data,
        vendor_data=vm.vendor_data,
        config_drive=vm.config_drive,
        ssh_keys=vm.ssh_keys,
        restart_policy=vm.restart_policy,
        track_dirty_pages=vm.track_dirty_pages,
    )


def as_captured(blueprint: Blueprint, machine: Machine) -> Blueprint:
    """The same with the sizes that the disks had when the snapshot was taken: what was wanted may
    have changed since it was asked for."""
    sizes = {drive.name: drive.size_mib for drive in machine.drives}
    return blueprint.model_copy(
        update={
            "rootfs_size_mib": machine.rootfs_size_mib,
            "drives": [
                drive.model_copy(update={"size_mib": sizes.get(drive.name, drive.size_mib)})
                for drive in blueprint.drives
            ],
        }
    )
