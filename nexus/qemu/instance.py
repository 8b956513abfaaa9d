"""The microVM behind the API: its state, and what may be done in which state.

States as Firecracker's: Not started → Running ⇄ Paused. One request is served at a time.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import msgspec

from nexus.qemu.commandline import Host, Machine, Nic, boot_arguments
from nexus.qemu.config import Configuration, OpenNic, check_drive_file
from nexus.qemu.faults import AFTER_BOOT, BEFORE_BOOT, Fault, os_error
from nexus.qemu.guest import Guest
from nexus.qemu.kernels import check_kernel
from nexus.qemu.log import Log
from nexus.qemu.memory import Memory, fresh, of_snapshot
from nexus.qemu.metrics import Metrics
from nexus.qemu.netdev import interface_counters
from nexus.qemu.nic_limits import NicLimits
from nexus.qemu.snapshot import LOAD, SavedMachine, SavedNic, read_state, write_state
from nexus.qemu.tap import open_tap
from nexus.qemu.throttle import merged
from nexus.qemu.vsock import Vsock
from nexus.vmm.types import (
    Balloon,
    BalloonStats,
    BalloonStatsUpdate,
    BalloonUpdate,
    InstanceInfo,
    InstanceState,
    NetworkOverride,
    PartialDrive,
    PartialNetworkInterface,
    SnapshotCreateParams,
    SnapshotLoadParams,
    VmState,
)

_START = "Start microvm error: "
_NO_DEVICE = "Device manager error: Failed to find the device on the bus."
_PAGE = 4096
# The power button is pressed once a second until the guest ends or this often.
POWER_PRESSES = 10
POWER_INTERVAL_S = 1.0
_STATS = {
    "stat-swap-in": "swap_in",
    "stat-swap-out": "swap_out",
    "stat-major-faults": "major_faults",
    "stat-minor-faults": "minor_faults",
    "stat-free-memory": "free_memory",
    "stat-total-memory": "total_memory",
    "stat-available-memory": "available_memory",
    "stat-disk-caches": "disk_caches",
    "stat-htlb-pgalloc": "hugetlb_allocations",
    "stat-htlb-pgfail": "hugetlb_failures",
}


class Instance:
    """One microVM. ``guest`` is there once it was started or loaded."""

    def __init__(self, instance_id: str, host: Host, log: Log, metrics: Metrics) -> None:
        self.id = instance_id
        self.config = Configuration()
        self.guest: Guest | None = None
        self.state: InstanceState = "Not started"
        self.presses_left = 0
        self._host = host
        self._log = log
        self._metrics = metrics
        self._limits = NicLimits()
        self._memory: Memory | None = None

    def info(self, version: str) -> InstanceInfo:
        return InstanceInfo(
            id=self.id, state=self.state, vmm_version=version, app_name="Firecracker"
        )

    def before_boot(self) -> Configuration:
        """The configuration, for a change that is possible only before the start."""
        if self.guest is not None:
            raise Fault(AFTER_BOOT)
        return self.config

    def _running(self) -> Guest:
        if self.guest is None:
            raise Fault(BEFORE_BOOT)
        return self.guest

    # -- start, pause, resume, power -------------------------------------------------------------

    def start(self) -> None:
        """``InstanceStart``."""
        config = self.before_boot()
        if config.boot is None:
            raise Fault(f"{_START}Cannot start microvm without kernel configuration.")
        if config.machine.cpu_template not in (None, "None"):
            raise Fault(
                f"{_START}CPU template {config.machine.cpu_template} needs Firecracker on KVM."
            )
        check_kernel(config.boot.kernel_image_path, _START)
        machine = config.machine
        huge = machine.huge_pages == "2M"
        try:
            memory = fresh(machine.mem_size_mib << 20, huge=huge)
        except OSError as error:
            raise Fault(f"{_START}Cannot allocate the memory: {os_error(error)}") from error
        self._launch(_START, memory, kernel=True)
        guest = self._running()
        try:
            self._prepare(guest)
            guest.resume()
        except Fault:
            self._drop(guest)
            raise
        self.state = "Running"

    def set_state(self, wanted: VmState) -> None:
        """``PATCH /vm``; asking for the present state is fine."""
        guest = self._running()
        if wanted == "Paused" and self.state == "Running":
            with self._timed("pause_vm"):
                guest.pause()
            self.state = "Paused"
        elif wanted == "Resumed" and self.state == "Paused":
            with self._timed("resume_vm"):
                guest.resume()
            self.state = "Running"

    def press_power(self) -> None:
        """``SendCtrlAltDel``: a graceful shutdown, by the ACPI power button."""
        self._running().press_power()
        self.presses_left = POWER_PRESSES - 1

    def press_power_again(self) -> None:
        """One more press: a guest that is still starting misses those before its handler."""
        if self.guest is not None and self.presses_left > 0 and self.state == "Running":
            self.presses_left -= 1
            self.guest.press_power()

    # -- devices while it runs -------------------------------------------------------------------

    def patch_drive(self, change: PartialDrive) -> None:
        guest = self._running()
        refused = "Drive config error: Unable to patch the block device: "
        drive = next((d for d in self.config.drives if d.drive_id == change.drive_id), None)
        if drive is None:
            raise Fault(f"{refused}{_NO_DEVICE} Please verify the request arguments.")
        if change.path_on_host is None and change.rate_limiter is None:
            raise Fault(
                f"{refused}Device manager error: Running method expected different backend. "
                "Please verify the request arguments."
            )
        if change.path_on_host is not None:
            backend = f"{refused}Device manager error: Virtio backend error: "
            try:
                check_drive_file(change.path_on_host, bool(drive.is_read_only), backend)
            except Fault as fault:
                raise Fault(f"{fault.message} Please verify the request arguments.") from fault
            drive = msgspec.structs.replace(drive, path_on_host=change.path_on_host)
            guest.swap_file(drive)
            self.config.set_drive(drive)
            self._metrics.count(f"block_{drive.drive_id}", "update_count")
        if change.rate_limiter is not None:
            limiter = merged(drive.rate_limiter, change.rate_limiter)
            guest.throttle(drive, limiter)
            self.config.set_drive(msgspec.structs.replace(drive, rate_limiter=limiter))

    def patch_nic(self, change: PartialNetworkInterface) -> None:
        self._running()
        nic = next((n for n in self.config.nics if n.config.iface_id == change.iface_id), None)
        if nic is None:
            raise Fault(f"Network config error: Unable to update the net device: {_NO_DEVICE}")
        changed = msgspec.structs.replace(
            nic.config,
            rx_rate_limiter=merged(nic.config.rx_rate_limiter, change.rx_rate_limiter),
            tx_rate_limiter=merged(nic.config.tx_rate_limiter, change.tx_rate_limiter),
        )
        self._limits.apply(
            changed.iface_id,
            changed.host_dev_name,
            changed.rx_rate_limiter,
            changed.tx_rate_limiter,
        )
        self.config.set_nic(changed)

    def balloon(self) -> Balloon:
        if self.config.balloon is None:
            raise Fault("Balloon config error: No balloon device found.")
        return self.config.balloon

    def patch_balloon(self, change: BalloonUpdate) -> None:
        guest = self._running()
        balloon = self.balloon()
        if change.amount_mib > self.config.machine.mem_size_mib:
            raise Fault("Balloon config error: Amount of pages requested is too large.")
        guest.set_balloon(self.config.machine.mem_size_mib, change.amount_mib)
        self.config.balloon = msgspec.structs.replace(balloon, amount_mib=change.amount_mib)

    def patch_balloon_stats(self, change: BalloonStatsUpdate) -> None:
        guest = self._running()
        balloon = self.balloon()
        interval = change.stats_polling_interval_s
        if bool(interval) != bool(balloon.stats_polling_interval_s):
            raise Fault(
                "Balloon config error: Error creating the balloon device: Statistics cannot be "
                "enabled/disabled after activation."
            )
        if interval:
            guest.set_balloon_interval(interval)
        self.config.balloon = msgspec.structs.replace(balloon, stats_polling_interval_s=interval)

    def balloon_stats(self) -> BalloonStats:
        guest = self._running()
        balloon = self.balloon()
        if not balloon.stats_polling_interval_s:
            raise Fault(
                "Balloon config error: Error creating the balloon device: Received stats querry "
                "when stats are disabled."
            )
        present, reported = guest.balloon_stats()
        actual_mib = self.config.machine.mem_size_mib - (present >> 20)
        return BalloonStats(
            target_pages=(balloon.amount_mib << 20) // _PAGE,
            actual_pages=(actual_mib << 20) // _PAGE,
            target_mib=balloon.amount_mib,
            actual_mib=actual_mib,
            **{_STATS[name]: value for name, value in reported.items() if name in _STATS},
        )

    @property
    def vsock(self) -> Vsock | None:
        """The vsock device whose connections are to be served."""
        return self.config.vsock.device if self.config.vsock is not None else None

    # -- snapshots -------------------------------------------------------------------------------

    def create_snapshot(self, params: SnapshotCreateParams) -> None:
        """``PUT /snapshot/create``. A Diff holds all memory touched since the machine was started
        or loaded: it may be laid over any earlier snapshot of this machine, as Firecracker's."""
        guest = self._running()
        diff = params.snapshot_type == "Diff"
        if diff and not self.config.machine.track_dirty_pages:
            raise Fault(
                "The requested operation is not supported: Diff snapshots are not allowed on uVMs "
                "with dirty page tracking disabled."
            )
        if self.state != "Paused":
            raise Fault(
                "Create snapshot error: Cannot save the microVM state: Operation not allowed: "
                "save/restore unavailable while running"
            )
        if self._memory is None:
            raise Fault("Create snapshot error: The machine has no memory.")
        config = self.config
        saved = SavedMachine(
            qemu=guest.version,
            accelerator="kvm" if self._host.kvm else "tcg",
            machine=config.machine,
            drives=config.drives,
            nics=[SavedNic(nic.config, nic.mac) for nic in config.nics],
            balloon=config.balloon,
            entropy=config.entropy,
            vsock=config.vsock.config if config.vsock else None,
            guest_port_open=config.vsock is not None and config.vsock.device.port_open,
        )
        with self._timed("diff_create_snapshot" if diff else "full_create_snapshot"):
            # Devices first: what they still hold is written to memory when they are saved.
            stream = guest.save()
            self._memory.save(params.mem_file_path, guest.process.pid, changes_only=diff)
            write_state(params.snapshot_path, saved, stream)

    def load_snapshot(self, params: SnapshotLoadParams) -> None:
        """``PUT /snapshot/load``: only into a VMM that nothing was configured in.

        A fault after the first file was opened is fatal, as Firecracker's are.
        """
        if self.guest is not None:
            raise Fault(AFTER_BOOT)
        if self.config.touched:
            raise Fault(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring "
                "boot-specific resources."
            )
        backend = params.mem_backend
        if backend is not None and backend.backend_type == "Uffd":
            raise Fault(f"{LOAD}Userfaultfd backends are not supported by nexus-qemu.", fatal=True)
        memory_path = backend.backend_path if backend else params.mem_file_path
        try:
            with self._timed("load_snapshot"):
                saved, stream = read_state(params.snapshot_path)
                self._adopt(saved, params.network_overrides)
                memory = of_snapshot(
                    memory_path or "",
                    saved.machine.mem_size_mib << 20,
                    huge=saved.machine.huge_pages == "2M",
                    discards=saved.balloon is not None,
                )
                self._launch(LOAD, memory, kernel=False, port_open=saved.guest_port_open)
                guest = self._running()
                if guest.version != saved.qemu:
                    raise Fault(
                        f"{LOAD}The snapshot was made by QEMU {saved.qemu}, this is "
                        f"{guest.version}."
                    )
                guest.load(stream, LOAD)
                self._prepare(guest)
                self.config.machine = msgspec.structs.replace(
                    saved.machine, track_dirty_pages=params.enable_diff_snapshots
                )
                if params.resume_vm:
                    guest.resume()
        except Fault as fault:
            raise Fault(fault.message, fatal=True) from fault
        self.state = "Running" if params.resume_vm else "Paused"

    def _adopt(self, saved: SavedMachine, overrides: list[NetworkOverride]) -> None:
        accelerator = "kvm" if self._host.kvm else "tcg"
        if saved.accelerator != accelerator:
            raise Fault(
                f"{LOAD}The snapshot was made under {saved.accelerator}, this host has "
                f"{accelerator}."
            )
        taps = {override.iface_id: override.host_dev_name for override in overrides}
        if unknown := taps.keys() - {nic.config.iface_id for nic in saved.nics}:
            self._log.error(f"No such network interface in the snapshot: {sorted(unknown)}")
            raise Fault(f"{LOAD}Failed to get snapshot state from file: Unknown Network Device.")
        config = self.config
        for drive in saved.drives:
            check_drive_file(
                drive.path_on_host or "",
                bool(drive.is_read_only),
                f"{LOAD}Failed to build microVM from snapshot: Failed to restore devices: ",
            )
        config.machine = saved.machine
        config.drives = saved.drives
        config.balloon = saved.balloon
        config.entropy = saved.entropy
        if saved.vsock is not None:
            config.open_vsock(
                saved.vsock,
                f"{LOAD}Failed to build microVM from snapshot: Failed to restore MMIO device: "
                "Cannot restore devices: VsockUnixBackend: ",
            )
        for nic in saved.nics:
            tap = taps.get(nic.config.iface_id, nic.config.host_dev_name)
            nic_config = msgspec.structs.replace(nic.config, host_dev_name=tap)
            config.nics.append(OpenNic(nic_config, nic.mac, open_tap(tap)))

    # -- metrics ---------------------------------------------------------------------------------

    def flush_metrics(self) -> None:
        """Writes a line of metrics, if there is a target."""
        if not self._metrics.on:
            return
        if self.guest is not None:
            self._gather(self.guest)
        drives = [drive.drive_id for drive in self.config.drives]
        self._metrics.flush(drives, [nic.config.iface_id for nic in self.config.nics])

    def _gather(self, guest: Guest) -> None:
        names = {f"drive-{drive.drive_id}": drive.drive_id for drive in self.config.drives}
        for entry in guest.ask("Metrics error: ", "query-blockstats"):
            device = str(entry.get("qdev", "")).removeprefix("/machine/peripheral/")
            drive_id = names.get(device.partition("/")[0])
            if drive_id is None:
                continue
            stats = entry["stats"]
            group = f"block_{drive_id}"
            self._metrics.total(group, "read_bytes", stats["rd_bytes"])
            self._metrics.total(group, "write_bytes", stats["wr_bytes"])
            self._metrics.total(group, "read_count", stats["rd_operations"])
            self._metrics.total(group, "write_count", stats["wr_operations"])
            self._metrics.total(group, "flush_count", stats["flush_operations"])
        counters = interface_counters()
        for nic in self.config.nics:
            seen = counters.get(nic.config.host_dev_name)
            if seen is None:
                continue
            group = f"net_{nic.config.iface_id}"
            # What the host sends into the TAP is what the guest receives.
            self._metrics.total(group, "rx_bytes_count", seen.tx_bytes)
            self._metrics.total(group, "rx_packets_count", seen.tx_packets)
            self._metrics.total(group, "rx_count", seen.tx_packets)
            self._metrics.total(group, "tx_bytes_count", seen.rx_bytes)
            self._metrics.total(group, "tx_packets_count", seen.rx_packets)
            self._metrics.total(group, "tx_count", seen.rx_packets)

    # -- the machine under it --------------------------------------------------------------------

    def close(self) -> None:
        """Gives back what the host holds for this machine; QEMU has ended or ends now."""
        if self.guest is not None:
            self._drop(self.guest)
        self._limits.close()

    def _launch(
        self, refused: str, memory: Memory, *, kernel: bool, port_open: bool = False
    ) -> None:
        config = self.config
        boot = config.boot if kernel else None
        try:
            with self._guest_port(is_open=port_open) as port_fds:
                make = partial(
                    Machine,
                    self.id,
                    config.machine,
                    memory.fd,
                    kernel=boot.kernel_image_path if boot else None,
                    initrd=boot.initrd_path if boot else None,
                    boot_args=boot_arguments(
                        boot.boot_args if boot else None, config.drives, self._host
                    ),
                    drives=config.drives,
                    nics=[Nic(nic.config.iface_id, nic.mac, nic.tap_fd) for nic in config.nics],
                    balloon=config.balloon,
                    entropy=config.entropy,
                    memory_private=memory.private,
                    guest_port_fd=next(iter(port_fds), None),
                )
                fds = [memory.fd, *(nic.tap_fd for nic in config.nics), *port_fds]
                self.guest = Guest.launch(make, self._host, fds, refused)
        except BaseException:
            memory.close()
            raise
        self._memory = memory

    @contextmanager
    def _guest_port(self, *, is_open: bool) -> Iterator[list[int]]:
        """QEMU's end of the port behind the vsock, if there is one; the device gets ours once QEMU
        was started."""
        if self.config.vsock is None:
            yield []
            return
        ours, theirs = socket.socketpair()
        try:
            yield [theirs.fileno()]
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.config.vsock.device.attach(ours, is_open=is_open)

    def _prepare(self, guest: Guest) -> None:
        """Sets what QEMU takes only at run time: limits, the balloon's target and statistics."""
        for drive in self.config.drives:
            if drive.rate_limiter is not None:
                guest.throttle(drive, drive.rate_limiter)
        for nic in self.config.nics:
            config = nic.config
            self._limits.apply(
                config.iface_id,
                config.host_dev_name,
                config.rx_rate_limiter,
                config.tx_rate_limiter,
            )
        balloon = self.config.balloon
        if balloon is not None:
            if balloon.amount_mib:
                guest.set_balloon(self.config.machine.mem_size_mib, balloon.amount_mib)
            if balloon.stats_polling_interval_s:
                guest.set_balloon_interval(balloon.stats_polling_interval_s)

    def _drop(self, guest: Guest) -> None:
        guest.end()
        self.guest = None
        if self.config.vsock is not None:
            self.config.vsock.device.detach()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun = time.perf_counter_ns()
        yield
        taken = (time.perf_counter_ns() - begun) // 1000
        self._metrics.store("latencies_us", name, taken)
        self._metrics.store("latencies_us", f"vmm_{name}", taken)
