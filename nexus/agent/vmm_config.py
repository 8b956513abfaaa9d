"""The file a VMM is started with: a pure function of the desired machine."""

import msgspec

from nexus.agent.layout import (
    CONFIG_DRIVE,
    INITRD,
    KERNEL,
    ROOTFS,
    VSOCK_SOCKET,
    drive_file,
    tap_name,
)
from nexus.agent.limits import drive_limiter, nic_limiters
from nexus.api.devices import ROOT_DRIVE
from nexus.api.machines import Machine, MachineNic
from nexus.vmm.types import (
    Balloon,
    BootSource,
    Drive,
    MachineConfiguration,
    NetworkInterface,
    VmConfigFile,
    Vsock,
)

DEFAULT_KERNEL_ARGS = "console=ttyS0 reboot=k panic=1 quiet"

ARP_EACH_FOR_ITSELF = (
    "sysctl.net.ipv4.conf.all.arp_ignore=1 sysctl.net.ipv4.conf.all.arp_announce=2"
)
"""Linux answers for all its addresses on every NIC, so that what is meant for one NIC comes to
another, past its limits (Documentation/networking/ip-sysctl.rst)."""

GUEST_CID = 3
"""The guest's address on its vsock; each VMM has a vsock of its own, so that all may have this."""


def kernel_args(machine: Machine) -> str:
    """The guest's command line: the VM's own arguments or the default, then what its init reads
    (docs/contracts.md)."""
    parts = [machine.kernel_args if machine.kernel_args is not None else DEFAULT_KERNEL_ARGS]
    parts.append(f"nexus.hostname={machine.name}")
    parts += [f"nexus.ip={n.iface},{n.mac},{n.ip},{n.gateway or ''}" for n in machine.nics]
    if len(machine.nics) > 1:
        parts.append(ARP_EACH_FOR_ITSELF)
    servers = list(dict.fromkeys(server for nic in machine.nics for server in nic.dns))
    if servers:
        parts.append(f"nexus.dns={','.join(servers)}")
    return " ".join(part for part in parts if part)


def needs_config_drive(machine: Machine) -> bool:
    """Only where there is something to say that the command line does not: it costs a start some
    milliseconds."""
    given = machine.user_data or machine.ssh_keys or machine.vendor_data
    return machine.config_drive or bool(given)


def vmm_config(machine: Machine) -> VmConfigFile:
    """What ``--config-file`` holds. Every path is relative to the VMM's working directory, so that
    a snapshot of the VM loads in any other VM's directory."""
    return VmConfigFile(
        boot_source=BootSource(
            kernel_image_path=KERNEL,
            initrd_path=INITRD if machine.initrd is not None else None,
            boot_args=kernel_args(machine),
        ),
        machine_config=MachineConfiguration(
            vcpu_count=machine.vcpu,
            mem_size_mib=machine.mem_mib,
            track_dirty_pages=machine.track_dirty_pages,
        ),
        drives=_drives(machine),
        network_interfaces=[_nic(machine, index, nic) for index, nic in enumerate(machine.nics)],
        balloon=_balloon(machine),
        vsock=Vsock(guest_cid=GUEST_CID, uds_path=VSOCK_SOCKET),
    )


def _drives(machine: Machine) -> list[Drive]:
    """In the order in which the guest finds them; the config drive last, so that the others have
    the same device names with and without it."""
    drives = []
    if machine.rootfs is not None:
        drives.append(
            Drive(
                drive_id=ROOT_DRIVE,
                path_on_host=ROOTFS,
                is_root_device=True,
                is_read_only=False,
                rate_limiter=drive_limiter(machine.rootfs_limits),
            )
        )
    drives += [
        Drive(
            drive_id=drive.name,
            path_on_host=drive_file(drive.name),
            is_root_device=False,
            is_read_only=drive.read_only,
            rate_limiter=drive_limiter(drive.limits),
        )
        for drive in machine.drives
    ]
    if needs_config_drive(machine):
        drives.append(
            Drive(
                drive_id="config",
                path_on_host=CONFIG_DRIVE,
                is_root_device=False,
                is_read_only=True,
            )
        )
    return drives


def _nic(machine: Machine, index: int, nic: MachineNic) -> NetworkInterface:
    rx, tx = nic_limiters(nic.limits)
    return NetworkInterface(
        iface_id=nic.iface,
        guest_mac=nic.mac,
        host_dev_name=tap_name(machine.id, index),
        rx_rate_limiter=rx,
        tx_rate_limiter=tx,
    )


def _balloon(machine: Machine) -> Balloon | None:
    if machine.balloon is None:
        return None
    return Balloon(
        amount_mib=machine.balloon.target_mib,
        deflate_on_oom=machine.balloon.deflate_on_oom,
        stats_polling_interval_s=machine.balloon.stats_interval_s,
    )


def encode(machine: Machine) -> bytes:
    """The file's content, in JSON."""
    return msgspec.json.encode(vmm_config(machine))
