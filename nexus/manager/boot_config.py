"""What a rollout changes of a VM: that with which it boots, and nothing that is its own.

Its name, tags, addresses, networks, drives and what is on them, and its end stay. See
docs/templates.md.
"""

from collections.abc import Collection

from nexus.api.common import Wire
from nexus.api.devices import Balloon, DriveLimits, NicLimits
from nexus.api.endings import RestartPolicy
from nexus.api.vms import VmSpec
from nexus.manager import devices, specs
from nexus.manager.db.columns import StoredImage, StoredImages
from nexus.manager.db.tables import VmRow


class BootConfig(Wire):
    """The part of a VM that a rollout may change."""

    version: int
    """The version of its template."""
    vcpu: int
    mem_mib: int
    kernel: StoredImage
    initrd: StoredImage | None
    kernel_args: str | None
    rootfs: StoredImage | None
    """What the root disk was made of."""
    rootfs_size_mib: int | None
    rootfs_limits: DriveLimits | None
    drive_limits: dict[str, DriveLimits | None]
    """By the names of the VM's drives."""
    nic_limits: list[NicLimits | None]
    """In the order of the VM's NICs."""
    balloon: Balloon | None
    restart_policy: RestartPolicy
    user_data: str | None
    vendor_data: str | None
    config_drive: bool
    ssh_keys: list[str]
    track_dirty_pages: bool


def of_row(row: VmRow) -> BootConfig:
    """A VM's configuration as it is wanted now."""
    return BootConfig(
        version=row.template_version or 0,
        vcpu=row.vcpu,
        mem_mib=row.mem_mib,
        kernel=row.kernel,
        initrd=row.initrd,
        kernel_args=row.kernel_args,
        rootfs=row.rootfs,
        rootfs_size_mib=row.rootfs_size_mib,
        rootfs_limits=row.rootfs_limits,
        drive_limits={drive.name: drive.limits for drive in row.drives},
        nic_limits=[nic.limits for nic in row.nics],
        balloon=row.balloon,
        restart_policy=row.restart_policy,
        user_data=row.user_data,
        vendor_data=row.vendor_data,
        config_drive=row.config_drive,
        ssh_keys=row.ssh_keys,
        track_dirty_pages=row.track_dirty_pages,
    )


def of_version(
    row: VmRow, version: int, spec: VmSpec, images: StoredImages, *, new_root: bool
) -> BootConfig:
    """The configuration of a VM at a version: what was given when the VM was made stays so.

    With ``new_root`` it has the version's root disk where that is of another image.
    """
    own = row.template_overrides or {}
    spec = specs.overridden(spec, VmSpec.model_validate(own))
    rootfs, size_mib = row.rootfs, row.rootfs_size_mib
    if new_root and "rootfs" not in own and _content(images.rootfs) != _content(rootfs):
        rootfs, size_mib = images.rootfs, spec.rootfs_size_mib
    drives = {drive.name: devices.simplified(drive.limits) for drive in spec.drives}
    nics = [devices.simplified(nic.limits) for nic in spec.nics]
    initrd_is_own = "initrd" in own or ("kernel" in own and spec.initrd is None)
    return BootConfig(
        version=version,
        vcpu=spec.vcpu,
        mem_mib=spec.mem_mib,
        kernel=row.kernel if "kernel" in own else images.kernel,
        initrd=row.initrd if initrd_is_own else images.initrd,
        kernel_args=spec.kernel_args,
        rootfs=rootfs,
        rootfs_size_mib=size_mib if rootfs else None,
        rootfs_limits=devices.simplified(spec.rootfs_limits) if rootfs else None,
        drive_limits={drive.name: drives.get(drive.name, drive.limits) for drive in row.drives},
        nic_limits=[
            nics[index] if index < len(nics) else nic.limits for index, nic in enumerate(row.nics)
        ],
        balloon=spec.balloon,
        restart_policy=spec.restart_policy,
        user_data=spec.user_data,
        # Where a version says nothing, the installation did when the VM was made.
        vendor_data=row.vendor_data if spec.vendor_data is None else spec.vendor_data,
        config_drive=spec.config_drive,
        ssh_keys=spec.ssh_keys,
        track_dirty_pages=spec.track_dirty_pages,
    )


def _content(image: StoredImage | None) -> str | None:
    return image.sha256 if image else None


_PLAIN = (
    "vcpu",
    "mem_mib",
    "kernel",
    "initrd",
    "kernel_args",
    "rootfs",
    "rootfs_size_mib",
    "rootfs_limits",
    "balloon",
    "restart_policy",
    "user_data",
    "vendor_data",
    "config_drive",
    "ssh_keys",
    "track_dirty_pages",
)


def apply(row: VmRow, config: BootConfig) -> None:
    """Writes a configuration into a VM's row. The VM has it from its next boot.

    A root disk of another image is made anew before that boot.
    """
    if config.rootfs is not None and _content(config.rootfs) != _content(row.rootfs):
        row.root_boot = row.boot + 1
    row.template_version = config.version
    for name in _PLAIN:
        if getattr(row, name) != getattr(config, name):
            setattr(row, name, getattr(config, name))
    drives = [
        drive.model_copy(update={"limits": config.drive_limits.get(drive.name, drive.limits)})
        for drive in row.drives
    ]
    if drives != row.drives:
        row.drives = drives
    limits = [*config.nic_limits, *(nic.limits for nic in row.nics[len(config.nic_limits) :])]
    nics = [
        nic.model_copy(update={"limits": limit})
        for nic, limit in zip(row.nics, limits, strict=False)
    ]
    if nics != row.nics:
        row.nics = nics


def same_boot(one: BootConfig, other: BootConfig, without: Collection[str] = ()) -> bool:
    """Whether a boot with the one is as a boot with the other."""
    names = {"version", *without}
    return one.model_dump(exclude=names) == other.model_dump(exclude=names)
