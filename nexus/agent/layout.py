"""Where everything of a VM lies. Every path is made here, from an id that was checked."""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

ROOTFS = "rootfs.ext4"
KERNEL = "kernel"
INITRD = "initrd"
CONFIG_DRIVE = "config.iso"
API_SOCKET = "api.sock"
VSOCK_SOCKET = "v.sock"
VMM_CONFIG = "vmm.json"
VMM_LOG = "vmm.log"
SNAPSHOT_MEMORY = "snap.mem"
SNAPSHOT_STATE = "snap.state"
CAPTURED_MEMORY = ".mem.new"
CAPTURED_STATE = ".state.new"
"""Names inside a VM's root, as they are given to the VMM."""

MAX_NICS = 8
_DRIVE = re.compile(r"[a-z][a-z0-9]{0,15}")


def is_vm_id(text: str) -> bool:
    """Whether the text is a lower-case UUIDv7 and nothing else."""
    return _UUID7.fullmatch(text) is not None


def tap_name(vm_id: str, index: int) -> str:
    """The TAP of a VM's n-th NIC: 13 characters (an interface name holds 15)."""
    return "nx" + hashlib.sha256(f"{vm_id}/{index}".encode()).hexdigest()[:11]


def shaper_of(tap: str) -> str:
    """The ``ifb`` through which ``nexus-qemu`` shapes what a guest sends (docs/contracts.md)."""
    return f"i{tap}"


def nic_links(vm_id: str, index: int) -> tuple[str, str]:
    """Every network device that a VM's n-th NIC can have on the host."""
    tap = tap_name(vm_id, index)
    return tap, shaper_of(tap)


def drive_file(name: str) -> str:
    """The file of a drive beside the root disk. Raises ValueError for anything that is no name."""
    if _DRIVE.fullmatch(name) is None:
        raise ValueError(f"not a drive's name: {name[:64]!r}")
    return f"drive-{name}.img"


def is_disk(name: str) -> bool:
    """Whether a file of that name in a VM's root is one of its disks."""
    stem = name.removeprefix("drive-").removesuffix(".img")
    named = name.startswith("drive-") and name.endswith(".img")
    return name in (ROOTFS, CONFIG_DRIVE) or (named and _DRIVE.fullmatch(stem) is not None)


@dataclass(frozen=True)
class SnapshotPaths:
    """The files of one snapshot (docs/snapshots.md)."""

    dir: Path

    @property
    def memory(self) -> Path:
        return self.dir / "mem"

    @property
    def state(self) -> Path:
        return self.dir / "state"

    @property
    def base(self) -> Path:
        """In the making: the memory of an earlier snapshot, which this one's is laid over."""
        return self.dir / ".base"

    @property
    def meta(self) -> Path:
        return self.dir / "meta.json"

    def disk(self, name: str) -> Path:
        """A disk by its name in the VM's root. Raises ValueError for anything else."""
        if not is_disk(name):
            raise ValueError(f"not a disk's file: {name[:64]!r}")
        return self.dir / name


@dataclass(frozen=True)
class VmPaths:
    """The files of one VM (docs/contracts.md)."""

    vm_id: str
    dir: Path
    jailed: bool

    def volume(self, volume_id: str) -> Path:
        """A volume's file on the VM's host. Raises ValueError."""
        return Layout(self.dir.parent.parent).volume(volume_id)

    @cached_property
    def desired(self) -> Path:
        return self.dir / "desired.json"

    @cached_property
    def status(self) -> Path:
        return self.dir / "status.json"

    @cached_property
    def nics(self) -> Path:
        """Which TAP and MAC belong to which NIC, in full."""
        return self.dir / "nics.json"

    @cached_property
    def console_in(self) -> Path:
        return self.dir / "console.in"

    @cached_property
    def console_log(self) -> Path:
        return self.dir / "console.log"

    @cached_property
    def root(self) -> Path:
        """The VMM's working directory; under the jailer also its ``/``."""
        if self.jailed:
            return self.dir / "firecracker" / self.vm_id / "root"
        return self.dir / "root"

    @cached_property
    def socket(self) -> Path:
        return self.root / API_SOCKET

    @cached_property
    def vsock(self) -> Path:
        """The unix socket behind which the guest's agent is reached (docs/guest-agent.md)."""
        return self.root / VSOCK_SOCKET

    @cached_property
    def vmm_config(self) -> Path:
        return self.root / VMM_CONFIG

    @cached_property
    def vmm_log(self) -> Path:
        return self.root / VMM_LOG

    @cached_property
    def snapshot_memory(self) -> Path:
        """A second name of the memory that a VMM loads, for as long as it takes."""
        return self.root / SNAPSHOT_MEMORY

    @cached_property
    def snapshot_state(self) -> Path:
        return self.root / SNAPSHOT_STATE


@dataclass(frozen=True)
class Layout:
    """The run directory of one installation."""

    run_dir: Path

    @property
    def vms_dir(self) -> Path:
        return self.run_dir / "vms"

    @property
    def trash_dir(self) -> Path:
        """VMs whose deletion has begun; what is found here is deleted at the next start."""
        return self.run_dir / "trash"

    @property
    def blanks_dir(self) -> Path:
        """Folders that new VMs are made of; what is found here at a start is deleted."""
        return self.run_dir / "blanks"

    @property
    def expired_dir(self) -> Path:
        """A name for each VM that the agent ended by itself, until the manager has it deleted."""
        return self.run_dir / "expired"

    def expired(self, vm_id: str) -> Path:
        """Raises ValueError for anything that is not a UUIDv7."""
        if not is_vm_id(vm_id):
            raise ValueError(f"not a VM id: {vm_id[:64]!r}")
        return self.expired_dir / vm_id

    @property
    def volumes_dir(self) -> Path:
        """Disks that outlive their VMs; on the file system of the VMs, which have links to them."""
        return self.run_dir / "volumes"

    def volume(self, volume_id: str) -> Path:
        """A volume's file. Raises ValueError for anything that is not a UUIDv7."""
        if not is_vm_id(volume_id):
            raise ValueError(f"not a volume's id: {volume_id[:64]!r}")
        return self.volumes_dir / f"{volume_id}.img"

    @property
    def snapshots_dir(self) -> Path:
        """Snapshots; on the file system of the VMs, which have links to their memory."""
        return self.run_dir / "snapshots"

    def snapshot(self, snapshot_id: str) -> SnapshotPaths:
        """A whole snapshot. Raises ValueError for anything that is not a UUIDv7."""
        return SnapshotPaths(self.snapshots_dir / _snapshot_id(snapshot_id))

    def snapshot_in_making(self, snapshot_id: str) -> SnapshotPaths:
        return SnapshotPaths(self.snapshots_dir / f".{_snapshot_id(snapshot_id)}.new")

    def snapshot_going(self, snapshot_id: str) -> SnapshotPaths:
        return SnapshotPaths(self.snapshots_dir / f".{_snapshot_id(snapshot_id)}.old")

    def snapshot_ids(self) -> list[str]:
        """Ids of all whole snapshots, the oldest first."""
        return _ids_in(self.snapshots_dir)

    @property
    def dhcp_dir(self) -> Path:
        """A folder for each network that is served."""
        return self.run_dir / "dhcp"

    @property
    def networks_file(self) -> Path:
        """The networks and forwards that the manager asked for last."""
        return self.run_dir / "networks.json"

    def vm(self, vm_id: str, *, jailed: bool = False) -> VmPaths:
        """The paths of a VM. Raises ValueError for anything that is not a UUIDv7."""
        if not is_vm_id(vm_id):
            raise ValueError(f"not a VM id: {vm_id[:64]!r}")
        return VmPaths(vm_id=vm_id, dir=self.vms_dir / vm_id, jailed=jailed)

    def trash(self, vm_id: str) -> Path:
        if not is_vm_id(vm_id):
            raise ValueError(f"not a VM id: {vm_id[:64]!r}")
        return self.trash_dir / vm_id

    def vm_ids(self) -> list[str]:
        """Ids of all VMs that have a directory, the oldest first."""
        return _ids_in(self.vms_dir)

    def trashed_ids(self) -> list[str]:
        return _ids_in(self.trash_dir)

    def prepare(self) -> None:
        """Makes the folders, readable by root alone."""
        self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        for folder in (
            self.vms_dir,
            self.trash_dir,
            self.expired_dir,
            self.volumes_dir,
            self.snapshots_dir,
        ):
            folder.mkdir(exist_ok=True, mode=0o700)


def _snapshot_id(text: str) -> str:
    if not is_vm_id(text):
        raise ValueError(f"not a snapshot's id: {text[:64]!r}")
    return text


def _ids_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if is_vm_id(entry.name))
