"""The machine as it is configured before it starts, and Firecracker's rules for it.

Each ``put_*`` takes one request body, checks it as Firecracker does, and raises Fault.
"""

import os
import re
from typing import TypeVar

import msgspec

from nexus.qemu.bodies import refusal
from nexus.qemu.faults import Fault, os_error
from nexus.qemu.tap import open_tap
from nexus.qemu.vsock import Vsock as VsockDevice
from nexus.vmm.types import (
    Balloon,
    BootSource,
    CpuConfig,
    Drive,
    EntropyDevice,
    FullVmConfiguration,
    MachineConfiguration,
    NetworkInterface,
    PartialMachineConfiguration,
    ShownBalloon,
    ShownBootSource,
    ShownDrive,
    ShownEntropyDevice,
    ShownMachineConfiguration,
    ShownNetworkInterface,
    ShownVsock,
    Vsock,
)

T = TypeVar("T")

_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_CMDLINE_MAX = 2048
_MAX_VCPUS = 32
_CPU_CONFIG_FIELDS = ("kvm_capabilities", "cpuid_modifiers", "msr_modifiers")


class OpenNic(msgspec.Struct, frozen=True):
    """A configured NIC, its address and its open TAP."""

    config: NetworkInterface
    mac: str
    tap_fd: int


class OpenVsock(msgspec.Struct, frozen=True):
    """A configured vsock device and its listening unix socket."""

    config: Vsock
    device: VsockDevice


class Configuration:
    """What the next start will be made of."""

    def __init__(self) -> None:
        self.machine = MachineConfiguration(vcpu_count=1, mem_size_mib=128)
        self.boot: BootSource | None = None
        self.drives: list[Drive] = []
        self.nics: list[OpenNic] = []
        self.balloon: Balloon | None = None
        self.entropy: EntropyDevice | None = None
        self.vsock: OpenVsock | None = None
        self.touched = False

    def put_machine(self, new: MachineConfiguration) -> None:
        vcpus = new.vcpu_count
        if not 0 < vcpus <= _MAX_VCPUS or (new.smt and vcpus > 1 and vcpus % 2):
            raise Fault(
                "Machine config error: The number of vCPUs must be greater than 0, less than 32 "
                "and must be 1 or an even number if SMT is enabled."
            )
        page_mib = 2 if new.huge_pages == "2M" else 1
        if new.mem_size_mib == 0 or new.mem_size_mib % page_mib:
            raise Fault(
                "Machine config error: The memory size (MiB) is either 0, or not a multiple of "
                "the configured page size."
            )
        if self.balloon is not None and self.balloon.amount_mib > new.mem_size_mib:
            raise Fault(
                "Machine config error: The memory size (MiB) is smaller than the previously set "
                "balloon device target size."
            )
        self.machine = new
        self.touched = True

    def patch_machine(self, change: PartialMachineConfiguration) -> None:
        named = {name: getattr(change, name) for name in change.__struct_fields__}
        if not any(value is not None for value in named.values()):
            raise Fault("Empty PATCH request.")
        given = {name: value for name, value in named.items() if value is not None}
        self.put_machine(msgspec.structs.replace(self.machine, **given))

    def put_boot(self, new: BootSource) -> None:
        refused = "Boot source error: "
        problem = _unreadable(new.kernel_image_path)
        if problem:
            raise Fault(f"{refused}The kernel file cannot be opened: {problem}")
        if new.initrd_path is not None:
            problem = _unreadable(new.initrd_path)
            if problem:
                raise Fault(
                    f"{refused}The initrd file cannot be opened due to invalid path or invalid "
                    f"permissions. {problem}"
                )
        args = new.boot_args or ""
        if len(args.encode()) >= _CMDLINE_MAX:
            raise Fault(
                f"{refused}The kernel command line is invalid: Invalid cmdline capacity provided."
            )
        if "\0" in args:
            raise Fault(
                f"{refused}The kernel command line is invalid: String contains an invalid ASCII "
                "character."
            )
        self.boot = new
        self.touched = True

    def put_drive(self, new: Drive) -> None:
        refused = "Drive config error: "
        if new.is_root_device and any(
            drive.is_root_device and drive.drive_id != new.drive_id for drive in self.drives
        ):
            raise Fault(f"{refused}A root block device already exists!")
        if new.socket is not None and new.path_on_host is None:
            raise Fault(f"{refused}vhost-user-block devices are not supported by nexus-qemu.")
        if new.path_on_host is None or new.socket is not None:
            raise Fault(f"{refused}Unable to create the virtio block device: Invalid block config.")
        check_drive_file(
            new.path_on_host,
            bool(new.is_read_only),
            f"{refused}Unable to create the virtio block device: Virtio backend error: ",
        )
        kept = [drive for drive in self.drives if drive.drive_id != new.drive_id]
        new = msgspec.structs.replace(
            new, is_read_only=bool(new.is_read_only), io_engine=new.io_engine or "Sync"
        )
        position = next(
            (at for at, drive in enumerate(self.drives) if drive.drive_id == new.drive_id),
            len(kept),
        )
        kept.insert(0 if new.is_root_device else position, new)
        self.drives = kept
        self.touched = True

    def put_nic(self, new: NetworkInterface) -> None:
        if new.guest_mac is not None and not _MAC.fullmatch(new.guest_mac):
            raise refusal("The provided MAC address is invalid")
        others = [nic for nic in self.nics if nic.config.iface_id != new.iface_id]
        if new.guest_mac is not None and any(
            nic.config.guest_mac == new.guest_mac for nic in others
        ):
            raise Fault(f"Network config error: The MAC address is already in use: {new.guest_mac}")
        for nic in self.nics:
            if nic.config.iface_id == new.iface_id:
                os.close(nic.tap_fd)
        self.nics = others
        fd = open_tap(new.host_dev_name)
        self.nics = [*others, OpenNic(new, new.guest_mac or _random_mac(), fd)]
        self.touched = True

    def put_balloon(self, new: Balloon) -> None:
        if new.amount_mib > self.machine.mem_size_mib:
            raise Fault("Balloon config error: Amount of pages requested is too large.")
        self.balloon = new
        self.touched = True

    def put_entropy(self, new: EntropyDevice) -> None:
        self.entropy = new
        self.touched = True

    def put_cpu(self, new: CpuConfig) -> None:
        for name in new:
            if name not in _CPU_CONFIG_FIELDS:
                known = ", ".join(f"`{field}`" for field in _CPU_CONFIG_FIELDS)
                raise refusal(f"unknown field `{name}`, expected one of {known}")
        if any(new.values()):
            raise Fault("CPU configuration error: Custom CPU templates need Firecracker on KVM.")
        self.touched = True

    def put_vsock(self, new: Vsock) -> None:
        # The old device goes first, also when the new one then fails, as in Firecracker.
        if self.vsock is not None:
            self.vsock.device.remove()
            self.vsock = None
        self.open_vsock(new, "Vsock config error: Cannot create backend for vsock device: ")
        self.touched = True

    def open_vsock(self, new: Vsock, refused: str) -> None:
        """Makes the device's unix socket; raises Fault, beginning with ``refused``."""
        binding = f"{refused}Error binding to the host-side Unix socket: "
        self.vsock = OpenVsock(new, VsockDevice(new.uds_path, binding))

    def set_drive(self, drive: Drive) -> None:
        """Notes a drive that was changed while the machine runs."""
        self.drives = [drive if d.drive_id == drive.drive_id else d for d in self.drives]

    def set_nic(self, config: NetworkInterface) -> None:
        """Notes a NIC that was changed while the machine runs."""
        self.nics = [
            msgspec.structs.replace(nic, config=config)
            if nic.config.iface_id == config.iface_id
            else nic
            for nic in self.nics
        ]

    def machine_shown(self) -> ShownMachineConfiguration:
        """``GET /machine-config``."""
        return as_shown(self.machine, ShownMachineConfiguration)

    def shown(self) -> FullVmConfiguration:
        """``GET /vm/config``."""
        boot = self.boot or BootSource(kernel_image_path="")
        return FullVmConfiguration(
            balloon=as_shown(self.balloon, ShownBalloon) if self.balloon else None,
            drives=[as_shown(drive, ShownDrive) for drive in self.drives],
            boot_source=as_shown(boot, ShownBootSource),
            machine_config=self.machine_shown(),
            network_interfaces=[as_shown(nic.config, ShownNetworkInterface) for nic in self.nics],
            vsock=self._vsock_shown(),
            entropy=as_shown(self.entropy, ShownEntropyDevice) if self.entropy else None,
        )

    def _vsock_shown(self) -> ShownVsock | None:
        if self.vsock is None:
            return None
        return as_shown(msgspec.structs.replace(self.vsock.config, vsock_id=None), ShownVsock)


def as_shown(value: object, kind: type[T]) -> T:
    """A request's type as the answer's type of the same fields."""
    return msgspec.convert(msgspec.to_builtins(value), kind)


def check_drive_file(path: str, read_only: bool, refused: str) -> None:
    """Raises Fault, beginning with ``refused``, when a drive's file cannot be opened."""
    try:
        os.close(os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC))
    except (OSError, ValueError) as error:
        text = os_error(error) if isinstance(error, OSError) else str(error)
        raise Fault(f"{refused}Error manipulating the backing file: {text} {path}") from error


def _unreadable(path: str) -> str | None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return os_error(error)
    except ValueError as error:
        return str(error)
    return None


def _random_mac() -> str:
    """A locally administered unicast address: 06 and five random bytes."""
    return "06:" + ":".join(f"{byte:02x}" for byte in os.urandom(5))
