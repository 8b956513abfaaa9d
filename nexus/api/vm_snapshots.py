"""Snapshots as users see them: taken of a VM, made into new VMs, put back."""

from typing import Annotated, Literal

from pydantic import Field

from nexus.api.common import Engine, Sha256, Tags, Timestamp, Uuid, VmName, Wire
from nexus.api.devices import MAX_NICS
from nexus.api.endings import Deadline, RestartPolicy, Ttl_s
from nexus.api.networks import NetworkRef
from nexus.api.snapshots import SnapshotKind, SnapshotName
from nexus.api.vms import VmImage

SnapshotState = Literal["requested", "importing", "ready", "error", "deleting"]
SnapshotWait = Literal["ready"]
"""What ``?wait=`` of a new snapshot can wait for."""
GoneWait = Literal["deleted"]
SnapshotStage = Literal["capture", "import", "delete"]

SnapshotRef = VmName
"""A snapshot's id or its name."""


class SnapshotCreate(Wire):
    """A request for a snapshot of a VM that runs or is paused."""

    name: SnapshotName | None = None
    """Made of the VM's name and the time when absent."""
    kind: SnapshotKind = "full"
    """``diff`` holds what changed in memory since the VM's snapshot before it, which must be of
    the same boot; the VM must have been made with ``track_dirty_pages``."""


class SnapshotUpdate(Wire):
    """Changes of a snapshot."""

    name: SnapshotName


class SnapshotClone(Wire):
    """A request for one VM made from a snapshot, or for ``count`` of them. What is left out is as
    it was at the VM that the snapshot was taken of."""

    name: VmName | None = None
    """Made up when absent. With ``count`` a number is put behind it: ``web-1``, ``web-2`` …"""
    count: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = None
    """So many at once: all of them, or none."""
    tags: Tags | None = None
    start: Annotated[bool, Field(strict=True)] = True
    """False loads it and leaves it paused: what follows is a resume."""
    restart_policy: RestartPolicy | None = None
    ttl: Ttl_s | None = None
    """Seconds from now until the VM is ended and deleted."""
    expires_at: Deadline | None = None
    """The same as a time. A VM made from a snapshot stays when neither is given."""
    networks: Annotated[list[NetworkRef], Field(min_length=1, max_length=MAX_NICS)] | None = None
    """The networks of its NICs, one for each that the snapshot has."""


class VmRestore(Wire):
    """A request to put a VM back to one of its snapshots: memory and disks."""

    snapshot: SnapshotRef
    start: Annotated[bool, Field(strict=True)] = True
    """False leaves it paused."""


class SnapshotError(Wire):
    """Why a snapshot is in ``error``, or why its last deletion was refused."""

    stage: SnapshotStage
    message: str
    fault_message: str | None = None
    suggestion: str | None = None


class SnapshotContent(Wire):
    """One file of a snapshot on its host."""

    name: str
    size_bytes: int
    disk_bytes: int
    """What it takes of the disk: memory and disks have holes."""
    sha256: Sha256


class Snapshot(Wire):
    id: Uuid
    name: str
    project: str
    state: SnapshotState
    error: SnapshotError | None
    vm_id: Uuid | None
    """The VM it was taken of, which may be gone; null when it was imported."""
    vm_name: str
    host_id: Uuid
    """Where it lies, and where VMs made from it are placed."""
    engine: Engine
    kind: SnapshotKind
    parent_id: Uuid | None
    """The snapshot that a diff was taken after."""
    needs_parent: bool
    """Whether a diff is only the difference still, so that its parent cannot be deleted. Hosts
    merge chains in the background."""
    scheduled: bool
    """Whether the VM's schedule made it, and may delete it."""
    vcpu: int
    mem_mib: int
    kernel: VmImage
    rootfs: VmImage | None
    vmm_version: str | None
    cpu_template: str | None
    cpu: str | None
    """The host's CPU model when it was taken."""
    files: list[SnapshotContent]
    size_bytes: int | None
    disk_bytes: int | None
    pause_ms: float | None
    """How long the guest stood still while it was taken."""
    taken_at: Timestamp | None
    created_at: Timestamp
    updated_at: Timestamp


class SnapshotScheduleSet(Wire):
    """When snapshots of a VM are to be taken by themselves."""

    every: Annotated[int, Field(strict=True, ge=60, le=366 * 86400)]
    """Seconds from one to the next."""
    keep: Annotated[int, Field(strict=True, ge=1, le=1000)]
    """So many are kept; older ones that the schedule made are deleted."""


class SnapshotSchedule(Wire):
    vm_id: Uuid
    every: int
    keep: int
    next_at: Timestamp
    last_error: str | None
    """Why the last one that was due was not taken: the VM did not run, for example."""
    created_at: Timestamp
    updated_at: Timestamp
