"""What VMs are made of, as values: overriding, changing and comparing specs. Pure functions."""

from collections.abc import Collection
from typing import Any

from pydantic import JsonValue

from nexus.api.devices import DriveCreate, NicCreate
from nexus.api.errors import ValidationFailed
from nexus.api.templates import SpecChange
from nexus.api.vms import VmCreate, VmSpec
from nexus.manager import devices
from nexus.manager.db.columns import StoredDrive, StoredImage, StoredImages, StoredNic
from nexus.manager.db.tables import VmRow

FIELDS = tuple(VmSpec.model_fields)


def given(spec: VmSpec) -> dict[str, Any]:
    """The fields that a request gave; what was left out is not among them."""
    return {name: getattr(spec, name) for name in FIELDS if name in spec.model_fields_set}


def whole(spec: VmSpec) -> VmSpec:
    """The same with every field given, and nothing but a spec."""
    return VmSpec(**{name: getattr(spec, name) for name in FIELDS})


def changed(base: VmSpec, change: VmSpec) -> VmSpec:
    """A spec after a change: the fields that ``change`` gives are as it says, each as a whole."""
    return whole(base.model_copy(update=given(change)))


def overridden(base: VmSpec, overrides: VmSpec) -> VmSpec:
    """What a VM is made of that a template describes and a request overrides.

    A field that is given takes the place of the template's, also a null, and a list as a whole.
    Tags alone are laid over the template's, key by key.
    """
    tags = {**base.tags, **overrides.tags}
    return whole(base.model_copy(update={**given(overrides), "tags": tags}))


def request_of(spec: VmSpec, asked: VmCreate | None = None) -> VmCreate:
    """The request for a VM of this spec, with the name, number and end that were asked for."""
    fields: dict[str, Any] = {name: getattr(spec, name) for name in FIELDS}
    if asked is not None:
        fields |= {"name": asked.name, "count": asked.count, "expires_at": asked.expires_at}
        if asked.expires_at is not None and "ttl" not in asked.model_fields_set:
            fields["ttl"] = None
    return VmCreate(**fields)


_NOT_THE_MACHINE = frozenset({"tags", "restart_policy", "ttl", "start", "rootfs_limits"})


def may_be_cloned(asked: VmSpec) -> bool:
    """Whether a VM with these overrides may be a clone of one that was booted without them: none of
    them is part of the machine, or of what its guest read when it booted."""
    return set(given(asked)) <= _NOT_THE_MACHINE


def check(spec: VmSpec) -> None:
    """Raises ValidationFailed for what only one VM could have, and what no VM can have."""
    volume = next((drive.name for drive in spec.drives if drive.volume is not None), None)
    if volume is not None:
        raise ValidationFailed(
            f"drive {volume} is a volume, which one VM can have, and a template is for many",
            suggestion="give it size_mib, or name the volume when you make the VM",
        )
    if any(nic.ip is not None for nic in spec.nics):
        raise ValidationFailed(
            "a NIC has an ip, which one VM can have, and a template is for many",
            suggestion="leave it out, or name it when you make the VM",
        )
    devices.check(request_of(spec))


def spec_of(row: VmRow) -> VmSpec:
    """What a VM is made of now, without its addresses and its end; images by their names."""
    return VmSpec(
        vcpu=row.vcpu,
        mem_mib=row.mem_mib,
        kernel=row.kernel.name,
        initrd=row.initrd.name if row.initrd else None,
        rootfs=row.rootfs.name if row.rootfs else None,
        kernel_args=row.kernel_args,
        tags=row.tags,
        restart_policy=row.restart_policy,
        user_data=row.user_data,
        vendor_data=row.vendor_data,
        config_drive=row.config_drive,
        ssh_keys=row.ssh_keys,
        rootfs_size_mib=row.rootfs_size_mib,
        rootfs_limits=row.rootfs_limits,
        drives=[_drive(drive) for drive in row.drives],
        nics=[_nic(nic) for nic in row.nics],
        balloon=row.balloon,
        track_dirty_pages=row.track_dirty_pages,
    )


def _drive(drive: StoredDrive) -> DriveCreate:
    if drive.volume is not None:
        given = {"volume": drive.volume.name, "read_only": drive.read_only, "limits": drive.limits}
        return DriveCreate.model_validate({"name": drive.name, **given})
    return DriveCreate(
        name=drive.name,
        size_mib=None if drive.read_only else drive.size_mib,
        image=drive.image.name if drive.image else None,
        read_only=drive.read_only,
        limits=drive.limits,
    )


def _nic(nic: StoredNic) -> NicCreate:
    return NicCreate(network=None if nic.home else nic.network, limits=nic.limits)


def images_of(row: VmRow) -> StoredImages:
    """The images that a VM was made of."""
    drives = {drive.name: drive.image for drive in row.drives if drive.image is not None}
    return StoredImages(kernel=row.kernel, initrd=row.initrd, rootfs=row.rootfs, drives=drives)


def differences(
    before: tuple[VmSpec, StoredImages],
    after: tuple[VmSpec, StoredImages],
    *,
    without: Collection[str] = (),
) -> list[SpecChange]:
    """What one spec has that the other has not, field by field, in their order.

    Images are told apart by their content. ``without`` are fields that are not looked at.
    """
    old, new = _flat(*before, without), _flat(*after, without)
    return [
        SpecChange(field=field, before=old.get(field), after=new.get(field))
        for field in dict.fromkeys([*old, *new])
        if old.get(field) != new.get(field)
    ]


def _flat(spec: VmSpec, images: StoredImages, without: Collection[str]) -> dict[str, JsonValue]:
    flat: dict[str, JsonValue] = {}
    for name, value in spec.model_dump(mode="json").items():
        if name in without:
            continue
        match name:
            case "kernel" | "initrd" | "rootfs":
                flat[name] = _label(getattr(images, name))
            case "tags":
                flat |= {f"tags.{key}": value[key] for key in sorted(value)}
            case "drives":
                for drive in value:
                    drive["image"] = _label(images.drives.get(drive["name"]))
                    flat[f"drives.{drive['name']}"] = _said(drive)
            case "nics":
                flat |= {f"nics.{index}": _said(nic) for index, nic in enumerate(value)}
            case _:
                flat[name] = value
    return flat


def _label(image: StoredImage | None) -> str | None:
    return None if image is None else f"{image.name}@{image.sha256[:12]}"


def _said(value: dict[str, Any]) -> dict[str, JsonValue]:
    """Without what is not said; of devices, their names and default values say nothing."""
    return {key: held for key, held in value.items() if held not in (None, False)}
