"""Volumes: disks that outlive their VMs."""

from typing import Literal

from nexus.api.common import Timestamp, Uuid, VmName, Wire
from nexus.api.devices import DiskMib

VolumeState = Literal["free", "attached", "deleting"]


class VolumeCreate(Wire):
    """A request for a volume, empty at first."""

    name: VmName
    size_mib: DiskMib


class Volume(Wire):
    id: Uuid
    name: str
    project: str
    state: VolumeState
    """``deleting`` is one whose host did not answer when it was to be deleted: delete it again."""
    size_mib: int
    host_id: Uuid
    """Where it lies; VMs that have it are placed there."""
    vm_id: Uuid | None
    """The VM that has it. It is free again when that VM is gone."""
    vm_name: str | None
    created_at: Timestamp
    updated_at: Timestamp
