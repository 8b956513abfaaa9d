"""A QEMU that runs (or waits to run) a machine, and what can be asked of it."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from nexus.qemu.commandline import Host, Machine, arguments, block_node
from nexus.qemu.faults import Fault, os_error
from nexus.qemu.process import QemuProcess, spawn
from nexus.qemu.qmp import QmpGone, QmpRefused, QmpTimeout
from nexus.qemu.throttle import block_throttle
from nexus.vmm.types import Drive, RateLimiter

T = TypeVar("T")

_START_TIMEOUT_S = 60.0
_MIGRATE_TIMEOUT_S = 300.0
_EXIT_TIMEOUT_S = 10.0
_CAPABILITIES = [{"capability": "events", "state": True}]


class Guest:
    """One QEMU. Every method raises Fault, with ``refused`` before QEMU's own words."""

    def __init__(self, process: QemuProcess, version: str) -> None:
        self.process = process
        self.version = version
        self._swaps = 0

    @classmethod
    def launch(
        cls, make: Callable[[int], Machine], host: Host, fds: list[int], refused: str
    ) -> "Guest":
        """Starts QEMU, stopped before the first instruction. ``make`` is given the QMP descriptor
        to put on the command line; ``fds`` are the others it inherits."""
        ours, child = socket.socketpair()
        machine = make(child.fileno())
        try:
            process = spawn(arguments(machine, host), ours, child, fds)
        except OSError as error:
            ours.close()
            raise Fault(f"{refused}Cannot run {host.binary}: {os_error(error)}") from error
        try:
            version = process.qmp.negotiate(_START_TIMEOUT_S)
        except (QmpGone, QmpTimeout, QmpRefused) as error:
            raise Fault(f"{refused}{_last_words(process)}") from error
        return cls(process, version)

    def ask(self, refused: str, command: str, **arguments: Any) -> Any:
        """A QMP command whose error becomes a Fault."""
        try:
            return self.process.qmp.execute(command, arguments or None)
        except QmpRefused as error:
            raise Fault(f"{refused}{error}") from error
        except (QmpGone, QmpTimeout) as error:
            raise Fault(f"{refused}QEMU does not answer.") from error

    def resume(self) -> None:
        self.ask("Cannot resume the microVM: ", "cont")

    def pause(self) -> None:
        self.ask("Cannot pause the microVM: ", "stop")

    def press_power(self) -> None:
        """The ACPI power button: the machine has no keyboard controller to press keys on."""
        self.ask("Cannot send the event: ", "system_powerdown")

    def throttle(self, drive: Drive, limiter: RateLimiter | None) -> None:
        device = f"drive-{drive.drive_id}"
        self.ask("Drive config error: ", "block_set_io_throttle", **block_throttle(device, limiter))

    def swap_file(self, drive: Drive) -> None:
        """Puts another file under a drive; the guest sees its size and content."""
        refused = "Drive config error: Unable to patch the block device: "
        self._swaps += 1
        node = f"swap{self._swaps}-{drive.drive_id}"[:31]
        device = f"/machine/peripheral/drive-{drive.drive_id}"
        old = self.ask(refused, "qom-get", path=device, property="drive")
        self.ask(refused, "blockdev-add", **block_node(drive, node))
        try:
            self.ask(refused, "qom-set", path=device, property="drive", value=node)
        except Fault:
            self.ask(refused, "blockdev-del", **{"node-name": node})
            raise
        self.ask(refused, "blockdev-del", **{"node-name": old})
        found = os.stat(drive.path_on_host or "")  # noqa: PTH116 - pathlib is not imported otherwise
        if stat.S_ISREG(found.st_mode) and not drive.is_read_only:
            # To the size it has: QEMU tells its guest of a size only when it has set one.
            self.ask(refused, "block_resize", **{"node-name": node, "size": found.st_size})

    def set_balloon(self, memory_mib: int, amount_mib: int) -> None:
        value = max(1, memory_mib - amount_mib) << 20
        self.ask("Balloon config error: ", "balloon", value=value)

    def set_balloon_interval(self, interval_s: int) -> None:
        name = "guest-stats-polling-interval"
        path = "/machine/peripheral/balloon"
        self.ask("Balloon config error: ", "qom-set", path=path, property=name, value=interval_s)

    def balloon_stats(self) -> tuple[int, dict[str, int]]:
        """The guest's present memory in bytes, and what its driver last reported."""
        refused = "Balloon config error: "
        actual = self.ask(refused, "query-balloon")["actual"]
        path = "/machine/peripheral/balloon"
        stats = self.ask(refused, "qom-get", path=path, property="guest-stats")["stats"]
        return actual, {name: value for name, value in stats.items() if value >= 0}

    def save(self) -> bytes:
        """QEMU's stream of the stopped machine's devices; memory is not in it, shared or private.

        It is the one way to get this of QEMU that leaves memory alone (QEMU docs:
        xen-save-devices-state; nothing about it is Xen's).
        """
        refused = "Create snapshot error: Cannot save the microVM state: "
        target = os.memfd_create("nexus-state")
        try:
            with self._lent(refused, target) as path:
                self.ask(refused, "xen-save-devices-state", filename=path, live=False)
            return os.pread(target, os.fstat(target).st_size, 0)
        finally:
            os.close(target)

    def load(self, stream: bytes, refused: str) -> None:
        """Feeds a saved stream to a QEMU that was launched without a kernel."""
        self.ask(refused, "migrate-set-capabilities", capabilities=_CAPABILITIES)
        # A clone is not to tell the network that it has its source's addresses.
        self.ask(refused, "migrate-set-parameters", **{"announce-rounds": 0})
        source = os.memfd_create("nexus-state")
        try:
            os.pwrite(source, stream, 0)
            self._receive(refused, source)
        finally:
            os.close(source)

    def end(self) -> None:
        """Ends QEMU at once."""
        self.process.kill()
        self.process.close()

    @contextmanager
    def _lent(self, refused: str, fd: int) -> Iterator[str]:
        """A descriptor of ours as a path for QEMU."""
        try:
            lent = self.process.qmp.execute("add-fd", fd=fd)
        except (QmpRefused, QmpGone, QmpTimeout) as error:
            raise Fault(f"{refused}QEMU does not take a file.") from error
        yield f"/proc/self/fd/{lent['fd']}"
        self.ask(refused, "remove-fd", **{"fdset-id": lent["fdset-id"]})

    def _receive(self, refused: str, fd: int) -> None:
        qmp = self.process.qmp
        try:
            qmp.execute("getfd", {"fdname": "state"}, fd=fd)
            qmp.execute("migrate-incoming", {"uri": "fd:state"})
            status = qmp.wait_event(
                "MIGRATION", ("completed", "failed"), timeout_s=_MIGRATE_TIMEOUT_S
            )
        except QmpRefused as error:
            raise Fault(f"{refused}{error}") from error
        except (QmpGone, QmpTimeout) as error:
            raise Fault(f"{refused}{_last_words(self.process, close=False)}") from error
        if status != "completed":
            raise Fault(f"{refused}QEMU could not load the state.")


def _last_words(process: QemuProcess, *, close: bool = True) -> str:
    """What a QEMU that ended (or is ended now) said on stderr, in one line."""
    code = process.wait(_EXIT_TIMEOUT_S)
    if code is None:
        process.kill()
    said = process.stderr_lines()
    if close:
        process.close()
    return " ".join(said) or f"QEMU ended with code {code}."
