"""From a machine's configuration to QEMU's arguments: values in, a list out, nothing touched.

The machine is QEMU's microvm (QEMU docs: system/i386/microvm): virtio devices on MMIO, the serial
port on stdin and stdout, ACPI for the power button. It starts stopped (``-S``).
"""

import msgspec

from nexus.vmm.types import Balloon, Drive, EntropyDevice, MachineConfiguration

# As Firecracker's default when a boot source gives none.
DEFAULT_BOOT_ARGS = (
    "reboot=k panic=1 pci=off nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd"
)
# Linux finds the microvm's MMIO slots from the highest down, and interrupts of slot 0 do not reach
# it (QEMU 7.2): 23 of the 24 are used.
LAST_SLOT = 23
# Bounds QEMU's cache of translated code; a booted Linux with a busy user space needs some 40 MiB.
TRANSLATION_CACHE_MIB = 128
# The port that the guest's agent looks for (docs/guest-agent.md), and how QEMU's events call it.
GUEST_PORT = "nexus.guest.0"
GUEST_PORT_ID = "guest-port"


class Host(msgspec.Struct, frozen=True):
    """What the arguments depend on beside the machine's configuration."""

    binary: str
    kvm: bool
    tsc_khz: int | None
    sandbox: bool


class Nic(msgspec.Struct, frozen=True):
    """A NIC on an open TAP, given by its descriptor."""

    iface_id: str
    mac: str
    tap_fd: int


class Machine(msgspec.Struct, frozen=True):
    """Everything that QEMU is told when it starts. Without ``kernel`` it waits for a snapshot."""

    instance_id: str
    config: MachineConfiguration
    memory_fd: int
    qmp_fd: int
    kernel: str | None = None
    initrd: str | None = None
    boot_args: str = ""
    drives: list[Drive] = []
    nics: list[Nic] = []
    balloon: Balloon | None = None
    entropy: EntropyDevice | None = None
    memory_private: bool = False
    """Whether what the machine changes in its memory does not reach the file."""
    guest_port_fd: int | None = None
    """QEMU's end of the virtio-serial port that stands in for a vsock device."""


def boot_arguments(given: str | None, drives: list[Drive], host: Host) -> str:
    """The guest's command line: what was given (or the default), the root drive, the TSC's rate.

    There is no PCI bus, which Firecracker tells its guests as well. Without the rate a guest under
    TCG measures it against a timer it does not get served in time and about one boot in five hangs;
    without ``tsc=reliable`` a loaded host makes it fall back to a coarser clock.
    """
    args = [DEFAULT_BOOT_ARGS if given is None else given]
    root = next((drive for drive in drives if drive.is_root_device), None)
    if root is not None:
        device = f"PARTUUID={root.partuuid}" if root.partuuid else "/dev/vda"
        args.append(f"root={device} {'ro' if root.is_read_only else 'rw'}")
    args.append("pci=off")
    if not host.kvm and host.tsc_khz is not None:
        args += [f"tsc_early_khz={host.tsc_khz}", "tsc=reliable"]
    return " ".join(arg for arg in args if arg)


def arguments(machine: Machine, host: Host) -> list[str]:
    """QEMU's whole argument list."""
    config = machine.config
    argv = [host.binary, "-name", f"nexus-{machine.instance_id}"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"]
    argv += ["-machine", "microvm,pit=off,pic=off,rtc=on,memory-backend=mem"]
    if host.kvm:
        argv += ["-accel", "kvm", "-cpu", "host"]
    else:
        argv += ["-accel", f"tcg,tb-size={TRANSLATION_CACHE_MIB}", "-cpu", "max"]
    threads = 2 if config.smt and config.vcpu_count > 1 else 1
    argv += ["-smp", f"{config.vcpu_count},threads={threads},sockets=1"]
    argv += ["-m", f"{config.mem_size_mib}M"]
    argv += ["-object", _memory(machine)]
    if host.sandbox:
        argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]
    argv += ["-chardev", f"socket,id=qmp,fd={machine.qmp_fd}", "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    argv += _devices(machine)
    if machine.kernel is None:
        # A stream of devices alone has no section that names the machine, none that describes it.
        argv += ["-global", "migration.send-configuration=off", "-machine", "suppress-vmdesc=on"]
        return [*argv, "-incoming", "defer"]
    argv += ["-kernel", machine.kernel, "-append", machine.boot_args]
    if machine.initrd is not None:
        argv += ["-initrd", machine.initrd]
    return argv


def _memory(machine: Machine) -> str:
    size = machine.config.mem_size_mib << 20
    path = f"/proc/self/fd/{machine.memory_fd}"
    share = "off" if machine.memory_private else "on"
    return f"memory-backend-file,id=mem,size={size},mem-path={path},share={share}"


def _devices(machine: Machine) -> list[str]:
    """Devices on fixed MMIO slots, root drive first, so that Linux finds it as /dev/vda."""
    argv: list[str] = []
    devices: list[dict[str, object]] = []
    for drive in sorted(machine.drives, key=lambda drive: not drive.is_root_device):
        argv += ["-blockdev", _json(block_node(drive, f"node-{drive.drive_id}"))]
        devices.append(
            {
                "driver": "virtio-blk-device",
                "id": f"drive-{drive.drive_id}",
                "drive": f"node-{drive.drive_id}",
                "serial": drive.drive_id[:20],
                "write-cache": "on" if drive.cache_type == "Writeback" else "auto",
            }
        )
    for nic in machine.nics:
        argv += ["-netdev", f"tap,id=tap-{nic.iface_id},fd={nic.tap_fd},vhost=off"]
        devices.append(
            {
                "driver": "virtio-net-device",
                "id": f"net-{nic.iface_id}",
                "netdev": f"tap-{nic.iface_id}",
                "mac": nic.mac,
            }
        )
    if machine.balloon is not None:
        devices.append(
            {
                "driver": "virtio-balloon-device",
                "id": "balloon",
                "deflate-on-oom": machine.balloon.deflate_on_oom,
            }
        )
    if machine.entropy is not None:
        argv += ["-object", "rng-random,id=rng,filename=/dev/urandom"]
        devices.append({"driver": "virtio-rng-device", "rng": "rng", **_rng(machine.entropy)})
    if machine.guest_port_fd is not None:
        # Port 0 is the console's, which nobody has here.
        devices.append({"driver": "virtio-serial-device", "id": "serial", "max_ports": 2})
    for index, device in enumerate(devices):
        device["bus"] = f"virtio-mmio-bus.{LAST_SLOT - index}"
        argv += ["-device", _json(device)]
    if machine.guest_port_fd is not None:
        argv += ["-chardev", f"socket,id=guest,fd={machine.guest_port_fd}"]
        port = {"bus": "serial.0", "nr": 1, "chardev": "guest", "name": GUEST_PORT}
        argv += ["-device", _json({"driver": "virtserialport", "id": GUEST_PORT_ID, **port})]
    return argv


def block_node(drive: Drive, name: str) -> dict[str, object]:
    """A raw file as a block node, for ``-blockdev`` and ``blockdev-add``.

    Firecracker's cache type Unsafe ignores the guest's flushes. Files are not locked: the caller
    decides who shares what, as with Firecracker.
    """
    return {
        "driver": "raw",
        "node-name": name,
        "read-only": bool(drive.is_read_only),
        "cache": {"no-flush": drive.cache_type == "Unsafe"},
        "file": {
            "driver": "file",
            "filename": drive.path_on_host,
            "locking": "off",
            "cache": {"no-flush": drive.cache_type == "Unsafe"},
        },
    }


def _json(value: dict[str, object]) -> str:
    return msgspec.json.encode(value).decode()


def _rng(entropy: EntropyDevice) -> dict[str, object]:
    bucket = entropy.rate_limiter.bandwidth if entropy.rate_limiter else None
    if bucket is None or not bucket.size or not bucket.refill_time:
        return {}
    return {"max-bytes": bucket.size, "period": bucket.refill_time}
