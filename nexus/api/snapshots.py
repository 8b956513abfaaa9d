"""Snapshots: memory, VMM state and disks of one VM, all of one moment."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from nexus.api.common import Engine, Sha256, Timestamp, Uuid, VmName, Wire
from nexus.api.machines import Machine

SnapshotKind = Literal["full", "diff"]
SnapshotName = VmName

SnapshotFileName = Annotated[
    str,
    StringConstraints(pattern=r"^(mem|state|rootfs\.ext4|config\.iso|drive-[a-z0-9]{1,16}\.img)$"),
]


class SnapshotFile(Wire):
    """One file of a snapshot: ``mem``, ``state``, or a disk as it is called in the VM's root."""

    name: SnapshotFileName
    size_bytes: Annotated[int, Field(ge=0)]
    disk_bytes: Annotated[int, Field(ge=0)]
    """What it takes on the host's disk: holes take nothing, shared blocks count for each."""
    sha256: Sha256


class SnapshotOrder(Wire):
    """``PUT /agent/v1/snapshots/{id}``: to be captured whole, once."""

    id: Uuid
    vm_id: Uuid
    kind: SnapshotKind = "full"
    parent_id: Uuid | None = None
    """Of a diff: the last snapshot of this VM in this boot."""

    @model_validator(mode="after")
    def _a_diff_has_a_parent(self) -> Self:
        if (self.kind == "diff") != (self.parent_id is not None):
            raise ValueError("a diff names its parent_id, a full snapshot has none")
        return self


class HostSnapshot(Wire):
    """What an agent knows of one snapshot; written beside its files as ``meta.json``."""

    id: Uuid
    vm_id: Uuid
    kind: SnapshotKind
    parent_id: Uuid | None
    needs_parent: bool = False
    """Its memory is still only what changed since its parent."""
    engine: Engine
    vmm_version: str
    cpu_template: str | None
    cpu: str
    """The host's CPU model: memory and state of one CPU do not load on another."""
    vcpu: int
    mem_mib: int
    files: list[SnapshotFile]
    size_bytes: int
    disk_bytes: int
    pause_ms: float
    """How long the guest stood still for it."""
    taken_at: Timestamp
    machine: Machine
    """The machine as it was: its drives, and the id and the NICs' addresses that its guest knows,
    which are another VM's while it has not been told who it is."""
    devices_told: bool = True
    """Its VMM knew the limits, sizes and balloon target that this machine names."""
