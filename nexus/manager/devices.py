"""The rules of a VM's drives, NICs and balloon, as pure functions."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from nexus.api.devices import (
    MAX_DEVICES,
    MAX_DRIVES,
    MIN_GUEST_MIB,
    RESERVED_DRIVES,
    ROOT_DRIVE,
    DriveChange,
    DriveLimits,
    NicLimits,
)
from nexus.api.errors import Conflict, NotFound, ValidationFailed
from nexus.api.machines import Blob, MachineDrive
from nexus.api.vms import VmCreate, VmDrive, VmImage, VmVolume
from nexus.manager.db.columns import StoredDrive, StoredImage
from nexus.manager.db.tables import VolumeRow

MIB = 1 << 20
LONGEST_DRIVE = 16

Limits = TypeVar("Limits", DriveLimits, NicLimits)


def drives_of(
    request: VmCreate, images: Mapping[str, StoredImage], volumes: Mapping[str, VolumeRow]
) -> list[StoredDrive]:
    """The drives of a new VM; images and volumes by the drives' names. Raises ValidationFailed."""
    drives = []
    for drive in request.drives:
        image, volume = images.get(drive.name), volumes.get(drive.name)
        limits = simplified(drive.limits)
        if volume is not None:
            made = volume_drive(drive.name, volume, read_only=drive.read_only)
            drives.append(made.model_copy(update={"limits": limits}))
            continue
        drives.append(
            StoredDrive(
                name=drive.name,
                size_mib=first_size(drive.name, drive.size_mib, image),
                image=image,
                read_only=drive.read_only,
                limits=limits,
            )
        )
    return drives


def volume_drive(name: str, volume: VolumeRow, *, read_only: bool) -> StoredDrive:
    """A volume as a VM's drive."""
    return StoredDrive(
        name=name,
        size_mib=volume.size_mib,
        image=volume.image,
        read_only=read_only,
        limits=None,
        volume=VmVolume(id=volume.id, name=volume.name),
    )


def following(drive: StoredDrive, volume: VolumeRow) -> StoredDrive:
    """A drive after a volume was changed: the same, unless it is that volume."""
    if drive.volume is None or drive.volume.id != volume.id:
        return drive
    changed = {"size_mib": volume.size_mib, "volume": VmVolume(id=volume.id, name=volume.name)}
    return drive.model_copy(update=changed)


def drive_name(volume_name: str) -> str:
    """What a volume is called among a VM's drives when nobody says."""
    letters = "".join(letter for letter in volume_name if letter.isalnum())
    name = letters if letters[0].isalpha() and letters not in RESERVED_DRIVES else f"v{letters}"
    return name[:LONGEST_DRIVE]


def check_another(
    vm_name: str, drives: Sequence[StoredDrive], nics: int, has_balloon: bool, new: StoredDrive
) -> None:
    """Raises Conflict when a VM cannot have one more drive."""
    if any(drive.name == new.name for drive in drives):
        raise Conflict(
            f"VM {vm_name!r} has a drive named {new.name} already",
            suggestion="give this one another name: --name NAME",
        )
    if len(drives) >= MAX_DRIVES or len(drives) + nics + has_balloon >= MAX_DEVICES:
        raise Conflict(
            f"VM {vm_name!r} has as many devices as a VM can have",
            suggestion=f"at most {MAX_DRIVES} drives, and {MAX_DEVICES} drives, NICs and balloon",
        )


def root_of(request: VmCreate, image: StoredImage | None) -> StoredDrive | None:
    """The root disk of a new VM. Raises ValidationFailed."""
    if image is None:
        if request.rootfs_size_mib is not None or request.rootfs_limits is not None:
            raise ValidationFailed(
                "rootfs_size_mib and rootfs_limits need a root disk",
                suggestion="name one: rootfs",
            )
        return None
    return StoredDrive(
        name=ROOT_DRIVE,
        size_mib=first_size(ROOT_DRIVE, request.rootfs_size_mib, image),
        image=image,
        read_only=False,
        limits=simplified(request.rootfs_limits),
    )


def check(request: VmCreate) -> None:
    """What no single field can say of a request. Raises ValidationFailed."""
    names = [drive.name for drive in request.drives]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValidationFailed(f"two drives are named {twice}", suggestion="name each differently")
    if request.count is not None and any(drive.volume for drive in request.drives):
        raise ValidationFailed(
            "a volume belongs to one VM, and count asks for many",
            suggestion="leave out count, or give them drives with size_mib",
        )
    count = len(names) + len(request.nics) + (request.balloon is not None)
    if count > MAX_DEVICES:
        raise ValidationFailed(
            f"{count} drives, NICs and balloon are more than the {MAX_DEVICES} that a VM can have",
            suggestion="leave some out",
        )
    if request.balloon is not None:
        check_balloon(request.balloon.target_mib, request.mem_mib)


def check_balloon(target_mib: int, mem_mib: int) -> None:
    """Raises ValidationFailed when a balloon would leave its guest too little."""
    most = mem_mib - MIN_GUEST_MIB
    if target_mib > max(0, most):
        raise ValidationFailed(
            f"a balloon of {target_mib} MiB leaves less than {MIN_GUEST_MIB} of {mem_mib} MiB",
            suggestion=f"ask for at most {max(0, most)} MiB",
        )


def first_size(name: str, size_mib: int | None, image: StoredImage | None) -> int | None:
    """A size that was asked for. Raises ValidationFailed where the image does not fit in."""
    least = size_of(image)
    if size_mib is not None and least is not None and size_mib < least:
        raise ValidationFailed(
            f"{name} of {size_mib} MiB is smaller than its image, which has {least} MiB",
            suggestion=f"give at least {least} MiB, or no size",
        )
    return size_mib


def size_of(image: StoredImage | None) -> int | None:
    """In MiB, rounded up."""
    return None if image is None else -(-image.size_bytes // MIB)


def present_size(drive: StoredDrive) -> int:
    """What the guest sees of a drive, in MiB."""
    return drive.size_mib or size_of(drive.image) or 0


def simplified(limits: Limits | None) -> Limits | None:
    """None where nothing is limited; a burst without its limit is nothing."""
    if isinstance(limits, DriveLimits):
        unlimited: dict[str, None] = {}
        if limits.bandwidth_mib_s is None:
            unlimited["bandwidth_burst_mib"] = None
        if limits.iops is None:
            unlimited["iops_burst"] = None
        limits = limits.model_copy(update=unlimited)
    if limits is None or all(value is None for _, value in limits):
        return None
    return limits


def merged(old: Limits | None, change: Limits | None) -> Limits | None:
    """Limits after a change: null takes them all away, a field that was left out stays."""
    if old is None or change is None:
        return simplified(change)
    given = {name: getattr(change, name) for name in change.model_fields_set}
    return simplified(old.model_copy(update=given))


def changed_drive(drive: StoredDrive, change: DriveChange) -> StoredDrive:
    """The drive as it is wanted after a change. Raises Conflict."""
    if "limits" in change.model_fields_set:
        drive = drive.model_copy(update={"limits": merged(drive.limits, change.limits)})
    size_mib, present = change.size_mib, present_size(drive)
    if size_mib is None or size_mib == present:
        return drive
    if drive.volume is not None:
        raise Conflict(
            f"drive {drive.name} is the volume {drive.volume.name!r}, which has {present} MiB",
            suggestion=f"nexus volume grow {drive.volume.name} SIZE",
        )
    if drive.read_only:
        raise Conflict(
            f"drive {drive.name} is read-only, so it stays as large as its image",
            suggestion="make a VM with a writable one: --drive NAME,image=IMAGE,size=SIZE",
        )
    if size_mib < present:
        raise Conflict(
            f"drive {drive.name} has {present} MiB, and drives never shrink",
            suggestion=f"ask for more than {present} MiB",
        )
    return drive.model_copy(update={"size_mib": size_mib})


def not_there(kind: str, name: str, vm_name: str, have: Sequence[str]) -> NotFound:
    """The error for a device that a VM does not have."""
    known = ", ".join(have) or "none"
    return NotFound(
        f"VM {vm_name!r} has no {kind} {name!r}; it has: {known}",
        suggestion=f"nexus show {vm_name}",
    )


def shown(root: StoredDrive | None, drives: Sequence[StoredDrive]) -> list[VmDrive]:
    """Drives as the API shows them, in the order in which Linux finds them."""
    every = [root, *drives] if root is not None else [*drives]
    return [
        VmDrive(
            name=drive.name,
            device=f"/dev/vd{chr(ord('a') + index)}",
            size_mib=present_size(drive),
            image=VmImage(**drive.image.model_dump(exclude={"size_bytes"}))
            if drive.image
            else None,
            read_only=drive.read_only,
            limits=drive.limits,
            volume=drive.volume,
        )
        for index, drive in enumerate(every)
    ]


def for_agent(drive: StoredDrive) -> MachineDrive:
    """A drive beside the root disk as the agent is told of it."""
    image = drive.image
    return MachineDrive(
        name=drive.name,
        size_mib=drive.size_mib,
        blob=Blob(sha256=image.sha256, size_bytes=image.size_bytes) if image else None,
        read_only=drive.read_only,
        limits=drive.limits,
        volume=drive.volume.id if drive.volume else None,
    )
