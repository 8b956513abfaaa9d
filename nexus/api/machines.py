"""The wire between manager and agent: the machine that is wanted, and the machine that is.

``PUT /agent/v1/vms/{id}`` carries a whole ``Machine`` and answers ``MachineStatus``; the agent
ensures it, and the same request twice does no more than once.
"""

from typing import Annotated, Literal

from pydantic import Field

from nexus.api.common import Engine, Progress, Sha256, Timestamp, Uuid, VmName, Wire
from nexus.api.devices import Balloon, DiskMib, DriveId, DriveLimits, NicLimits
from nexus.api.endings import ExitCause, LastExit, RestartPolicy
from nexus.api.origins import Identity, Origin
from nexus.api.vms import KernelArgs, SshKey, UserData, VmError

Power = Literal["running", "paused", "stopped"]

MachineState = Literal[
    "preparing",
    "configured",
    "running",
    "paused",
    "stopping",
    "stopped",
    "error",
]


VMM_BODY_BYTES = 51_200
"""The largest request body that a VMM takes, Firecracker's own default."""


class Blob(Wire):
    """Content of the image store, named by its hash."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class MachineNic(Wire):
    iface: Annotated[str, Field(pattern=r"^eth[0-9]{1,2}$")]
    mac: Annotated[str, Field(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]
    ip: Annotated[str, Field(pattern=r"^[0-9.]{7,15}/[0-9]{1,2}$")]
    gateway: Annotated[str, Field(pattern=r"^[0-9.]{7,15}$")] | None
    dns: list[Annotated[str, Field(pattern=r"^[0-9.]{7,15}$")]]
    limits: NicLimits | None = None
    network: Uuid | None = None
    """None is the host's own network."""


class MachineDrive(Wire):
    """A drive beside the root disk. Its file is made once and kept; it grows and never shrinks."""

    name: DriveId
    size_mib: DiskMib | None
    """At least so large; null is as large as its content."""
    blob: Blob | None
    """What it holds when it is made; null is nothing."""
    read_only: bool
    limits: DriveLimits | None = None
    volume: Uuid | None = None
    """The volume that it is: its file stays when the machine is deleted."""


class VolumeCopyOrder(Wire):
    """``PUT /agent/v1/volumes/{id}``: a volume that begins as another one of this host is."""

    source: Uuid


class Machine(Wire):
    """The whole desired machine."""

    id: Uuid
    name: VmName
    generation: Annotated[int, Field(ge=1)]
    """A lower generation than the one the agent holds is answered 409."""
    power: Power
    boot: Annotated[int, Field(ge=0)]
    """The number of the boot that is wanted. A VMM that ended stays ended until a higher number
    is asked for; 0 with ``stopped`` means: prepare everything, start nothing."""
    vcpu: Annotated[int, Field(ge=1, le=32)]
    mem_mib: Annotated[int, Field(ge=16)]
    kernel: Blob
    initrd: Blob | None
    rootfs: Blob | None
    kernel_args: KernelArgs | None
    nics: Annotated[list[MachineNic], Field(max_length=8)]
    user_data: UserData | None
    ssh_keys: list[SshKey]
    vendor_data: UserData | None = None
    config_drive: bool = False
    """A config drive also where there is nothing else to say on it."""
    stop_timeout_s: Annotated[float, Field(ge=0, le=600)] = 10.0
    """How long a guest has to power off before its VMM is killed; 0 kills at once."""
    rootfs_size_mib: DiskMib | None = None
    """The root disk is at least so large, and so is its file system when it boots."""
    rootfs_limits: DriveLimits | None = None
    drives: Annotated[list[MachineDrive], Field(max_length=8)] = Field(default_factory=list)
    balloon: Balloon | None = None
    restart_policy: RestartPolicy = "never"
    """What the agent does by itself when the guest ends without being asked to."""
    expires_at: Timestamp | None = None
    """When the agent ends and deletes the machine by itself."""
    origin: Origin | None = None
    """The snapshot that one of its boots is loaded from, and its disks with it."""
    root_boot: Annotated[int, Field(ge=1)] | None = None
    """The boot before which the root disk is made anew of ``rootfs``: that one, or if it never was
    the first after it. A load of a snapshot, which brings a disk of its own, counts as well."""
    track_dirty_pages: bool = False
    """From its next boot on the VMM notes which memory its guest writes: diff snapshots need that,
    and it costs the guest a little."""


class MachineNicStatus(Wire):
    iface: str
    tap: str


class MachineStatus(Wire):
    """What the agent observes of one machine."""

    id: Uuid
    generation: int
    """The generation the agent last was given."""
    state: MachineState
    boot: int
    """The last boot that was begun; 0 before the first."""
    engine: Engine
    pid: int | None
    socket: str
    nics: list[MachineNicStatus]
    configured_at: Timestamp | None
    started_at: Timestamp | None
    exited_at: Timestamp | None
    exit_cause: ExitCause | None
    error: VmError | None
    observed_at: Timestamp
    devices_applied: bool = True
    """Whether the VMM was told the limits, sizes and balloon target that are wanted."""
    devices_error: VmError | None = None
    """Why the VMM did not take them; the agent tries again by itself."""
    restarts: int = 0
    """How often this boot was started again by the restart policy."""
    restart_at: Timestamp | None = None
    """When it will be; null when it will not."""
    last_exit: LastExit | None = None
    """Of any boot; kept while the machine runs again."""
    progress: Progress | None = None
    """Of images that are being fetched; null when nothing is."""
    identity: Identity | None = None
    """Of a boot that was loaded from a snapshot; null for an ordinary boot."""


class AgentEvent(Wire):
    """One line of ``GET /agent/v1/events`` (NDJSON).

    On connect the agent sends one ``status`` line for every machine it holds, then ``synced``,
    then a line for every change; ``gone`` names a machine whose deletion has finished, and
    ``ping`` keeps the stream alive.
    """

    type: Literal["status", "synced", "gone", "ping"]
    status: MachineStatus | None = None
    vm_id: Uuid | None = None
