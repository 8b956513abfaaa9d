"""VMs as users see them."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from nexus.api.common import (
    Engine,
    ImagePath,
    ImageRef,
    Progress,
    Sha256,
    Tags,
    Timestamp,
    Uuid,
    VmName,
    Wire,
)
from nexus.api.devices import (
    MAX_DRIVES,
    MAX_NICS,
    Balloon,
    DiskMib,
    DriveCreate,
    DriveLimits,
    NicCreate,
    NicLimits,
)
from nexus.api.endings import Deadline, LastExit, RestartPolicy, Ttl_s
from nexus.api.images import ImageKind
from nexus.api.origins import Identity

VmState = Literal[
    "requested",
    "configured",
    "running",
    "paused",
    "stopping",
    "stopped",
    "error",
    "deleting",
    "unknown",
]

WaitState = Literal["configured", "running", "paused", "stopped", "deleted"]
"""What ``?wait=`` can wait for."""

Stage = Literal["place", "disk", "network", "spawn", "configure", "boot", "run"]
"""Where a VM failed: ``run`` is a VMM that ended by itself with an error."""

KernelArgs = Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=1024)]
SshKey = Annotated[str, StringConstraints(pattern=r"^[ -~]{16,4096}$", strip_whitespace=True)]
UserData = Annotated[str, StringConstraints(max_length=65536)]


class VmSpec(Wire):
    """What a VM is made of, all but its name. Sizes are MiB."""

    vcpu: Annotated[int, Field(strict=True, ge=1, le=32)] = 1
    mem_mib: Annotated[int, Field(strict=True, ge=16, le=1048576)] = 256
    kernel: ImageRef | ImagePath | None = None
    """Id or name of a kernel image; the default one when absent. Like ``initrd`` and ``rootfs`` it
    may be a path under the image root, if the manager allows that."""
    initrd: ImageRef | ImagePath | None = None
    """When absent: the initrd named like the kernel, if there is one."""
    rootfs: ImageRef | ImagePath | None = None
    """When absent and no kernel is given either: the default one. A kernel of one's own needs no
    root disk."""
    kernel_args: KernelArgs | None = None
    tags: Tags = Field(default_factory=dict)
    start: Annotated[bool, Field(strict=True)] = True
    """False prepares everything and leaves the VM ``configured``."""
    restart_policy: RestartPolicy = "never"
    ttl: Ttl_s | None = None
    """Seconds from its creation until the VM is ended and deleted."""
    user_data: UserData | None = None
    """Given to the guest on its config drive; a script (``#!``), or what cloud-init takes."""
    vendor_data: UserData | None = None
    """The same, of whoever runs the installation; its default when absent, and none when empty."""
    config_drive: Annotated[bool, Field(strict=True)] = False
    """A config drive in any case, for an image with cloud-init. Without it, a VM has one if it has
    ``user_data``, ``vendor_data`` or ``ssh_keys``."""
    ssh_keys: Annotated[list[SshKey], Field(max_length=32)] = Field(default_factory=list)
    rootfs_size_mib: DiskMib | None = None
    """Makes the root disk larger than its image, and an ext4 file system in it as well."""
    rootfs_limits: DriveLimits | None = None
    drives: Annotated[list[DriveCreate], Field(max_length=MAX_DRIVES)] = Field(default_factory=list)
    nics: Annotated[list[NicCreate], Field(min_length=1, max_length=MAX_NICS)] = Field(
        default_factory=lambda: [NicCreate()]
    )
    balloon: Balloon | None = None
    """A VM gets a balloon when it is made, or never."""
    track_dirty_pages: Annotated[bool, Field(strict=True)] = False
    """Lets diff snapshots be taken of it, which costs its guest a little."""


class VmCreate(VmSpec):
    """A request for one VM, or for ``count`` of them alike."""

    name: VmName | None = None
    """Unique among the project's VMs; made up when absent. With ``count`` a number is put behind
    it: ``web-1``, ``web-2`` …"""
    count: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = None
    """So many at once: all of them, or none."""
    expires_at: Deadline | None = None
    """``ttl`` as a time; a VM has one of the two, or stays until somebody deletes it."""


class VmUpdate(Wire):
    """Changes of a VM; what is left out stays as it is."""

    name: VmName = Field(default_factory=str)
    """The guest gets it as its host name at its next start."""
    tags: Tags = Field(default_factory=dict)
    """All of the VM's tags: those that are not named go."""
    restart_policy: RestartPolicy = "never"
    ttl: Ttl_s | None = None
    """Seconds from now until the VM is ended and deleted; null is never."""
    expires_at: Deadline | None = None
    """The same as a time; null is never. One of the two, not both."""


class VmImage(Wire):
    """An image as a VM uses it: what it was called when the VM was made, and its content."""

    id: Uuid
    kind: ImageKind
    name: str
    sha256: Sha256


class VmNic(Wire):
    iface: str
    """The device name in the guest and the id at the VMM, ``eth0``."""
    mac: str
    ip: str
    """Address with prefix length, ``10.77.0.5/20``."""
    gateway: str | None
    tap: str
    """The TAP device on the host."""
    limits: NicLimits | None = None
    network: str = "default"


class VmVolume(Wire):
    """A volume as a VM shows it."""

    id: Uuid
    name: str


class VmDrive(Wire):
    name: str
    """Also its id at the VMM; the root disk is ``rootfs``."""
    device: str
    """Where Linux finds it."""
    size_mib: int
    image: VmImage | None
    """What it held at first; null is nothing."""
    read_only: bool
    limits: DriveLimits | None
    volume: VmVolume | None = None
    """The volume that it is, if it is one."""


class VmOrigin(Wire):
    """The snapshot that a VM was loaded from."""

    snapshot: Uuid
    name: str
    """What it was called then; it may be gone."""
    boot: int
    """The boot that was loaded; a later one began with the kernel again."""


class VmTemplate(Wire):
    """The template that a VM comes from, as it was called then; it may be gone by now."""

    id: Uuid
    name: str
    version: int


class VmError(Wire):
    """Why a VM is in ``error``."""

    stage: Stage
    message: str
    fault_message: str | None = None
    suggestion: str | None = None
    log_tail: list[str] = Field(default_factory=list)


class Vm(Wire):
    id: Uuid
    name: str
    project: str
    state: VmState
    error: VmError | None
    vcpu: int
    mem_mib: int
    kernel: VmImage
    initrd: VmImage | None
    rootfs: VmImage | None
    kernel_args: str | None
    nics: list[VmNic]
    drives: list[VmDrive] = Field(default_factory=list)
    """All but the config drive; the root disk, if there is one, is the first."""
    balloon: Balloon | None = None
    devices_error: VmError | None = None
    """Why a VMM that runs did not take the limits, sizes or balloon target that are wanted. The VM
    goes on as it was; it is tried again, and has them at its next boot."""
    tags: dict[str, str]
    host_id: Uuid | None
    engine: Engine | None
    socket: str | None
    """The VMM's API socket on its host."""
    pid: int | None
    generation: int
    """Grows with every change of what is wanted."""
    boot: int
    """The number of the boot that is wanted or was last had."""
    created_at: Timestamp
    updated_at: Timestamp
    started_at: Timestamp | None
    restart_policy: RestartPolicy = "never"
    restarts: int = 0
    """How often the policy has started it again since somebody last asked for a start."""
    restart_at: Timestamp | None = None
    """When the policy will; null when it will not."""
    last_exit: LastExit | None = None
    expires_at: Timestamp | None = None
    """When the VM is ended and deleted; null is never."""
    track_dirty_pages: bool = False
    origin: VmOrigin | None = None
    """The snapshot that it was loaded from, if it was."""
    identity: Identity | None = None
    """Whether the guest of a loaded VM has taken its own name, addresses and entropy; null for a
    boot that began with the kernel."""
    template: VmTemplate | None = None
    progress: Progress | None = None
    """Of images that its host fetches for it; null when it fetches none."""


class VmEvent(Wire):
    """One change in a VM's life; ``id`` grows, so that a reader can go on where it was."""

    id: int
    vm_id: Uuid
    vm_name: str
    """What the VM was called then."""
    at: Timestamp
    state: VmState
    reason: str
    """A word for programs: ``created``, ``guest_poweroff``, ``vmm_crashed`` …"""
    message: str
    actor: str
    """Who caused it: a token's name, or ``system``."""
    request_id: str | None


class LogChunk(Wire):
    """The last lines of a log. ``offset`` is where to go on reading, in bytes."""

    source: Literal["console", "vmm"]
    lines: list[str]
    offset: int


LogSource = Literal["console", "vmm"]
