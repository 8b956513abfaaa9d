"""Volumes: disks that outlive their VMs."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nexus.api.common import ImageRef, Timestamp, Uuid, VmName, Wire
from nexus.api.devices import RESERVED_DRIVES, DiskMib, DriveId
from nexus.api.vms import VmImage

VolumeState = Literal["free", "attached", "detaching", "copying", "deleting"]


class VolumeCreate(Wire):
    """A request for a volume: empty, or a copy of an image, or both: a copy made larger."""

    name: VmName
    size_mib: DiskMib | None = None
    image: ImageRef | None = None
    """Id or name of a root file system image."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.size_mib is None and self.image is None:
            raise ValueError(f"{self.name} needs size_mib, or an image")
        return self


class VolumeChange(Wire):
    """Changes of a volume; what is left out stays as it is."""

    name: VmName = Field(default_factory=str)
    size_mib: DiskMib = Field(default_factory=int)
    """Only larger than it is. A guest that runs with it sees the new size at once."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing is to be changed")
        return self


class VolumeAttach(Wire):
    """Gives a volume to a VM that is there already."""

    vm: VmName
    """Id or name of the VM."""
    name: DriveId | None = None
    """The drive's name in the VM; made from the volume's name when absent."""
    read_only: Annotated[bool, Field(strict=True)] = False
    restart: Annotated[bool, Field(strict=True)] = False
    """Reboots a VM that runs: a VMM gets its drives when it starts."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.name in RESERVED_DRIVES:
            raise ValueError(f"{self.name} is taken by Nexus: choose another name")
        return self


class VolumeDetach(Wire):
    """Takes a volume from its VM."""

    restart: Annotated[bool, Field(strict=True)] = False
    """Reboots a VM that runs: a VMM keeps its drives until it ends."""


class VolumeSnapshot(Wire):
    """A request for a new volume that begins as another one is now."""

    name: VmName


class Volume(Wire):
    id: Uuid
    name: str
    project: str
    state: VolumeState
    """``detaching``: its VM's host has not let go of it yet; it is free once it has. ``copying``:
    its content is not whole; the request that made it, sent again, goes on with it. ``deleting``:
    its host did not answer when it was to be deleted; delete it again."""
    size_mib: int
    image: VmImage | None = None
    """What it held when it was made; null is nothing."""
    host_id: Uuid
    """Where it lies; VMs that have it are placed there."""
    vm_id: Uuid | None
    """The VM that has it. It is free again when that VM is gone, or it was detached."""
    vm_name: str | None
    drive: str | None = None
    """What it is called among that VM's drives."""
    created_at: Timestamp
    updated_at: Timestamp
