"""The event loop: API clients, QEMU's events and end, signals and the metrics interval.

One thread, one request at a time, as Firecracker's own API is served.
"""

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable

from nexus.qemu.api import Api
from nexus.qemu.faults import Fault
from nexus.qemu.guest import Guest
from nexus.qemu.http import Connection
from nexus.qemu.instance import POWER_INTERVAL_S, Instance
from nexus.qemu.log import Log
from nexus.qemu.metrics import INTERVAL_S
from nexus.qemu.qmp import QmpGone

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_MAX_CLIENTS = 64
_EXIT_TIMEOUT_S = 30.0


class Ended(Exception):
    """The VMM is to end with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Server:
    """Serves until the machine ends."""

    def __init__(self, instance: Instance, api: Api, log: Log, max_payload_bytes: int) -> None:
        self._instance = instance
        self._api = api
        self._log = log
        self._max = max_payload_bytes
        self._selector = selectors.DefaultSelector()
        self._watched: Guest | None = None
        self._clients = 0
        self._next_flush = time.monotonic() + INTERVAL_S
        self._next_press = 0.0
        self._reason = ""
        self.signal: int | None = None

    def listen(self, path: str) -> None:
        """Binds the API's socket; raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(path)
        listener.listen(_MAX_CLIENTS)
        self._on_read(listener, lambda: self._accept(listener))
        self._log.info(f'Listening on API socket ("{path}").')
        self._log.info("API server started.", "fc_api")

    def run(self) -> int:
        """Serves; the exit code. A signal that ends us is left in ``signal``."""
        self._catch_signals()
        try:
            while True:
                self._watch_guest()
                wait_s = max(0.0, self._next_wake() - time.monotonic())
                for key, events in self._selector.select(wait_s):
                    if key.fileobj in self._selector.get_map():
                        callback: Callable[[int], None] = key.data
                        callback(events)
                if (vsock := self._instance.vsock) is not None:
                    vsock.expire()
                if self._instance.presses_left and time.monotonic() >= self._next_press:
                    self._press_again()
                if time.monotonic() >= self._next_flush:
                    self._next_flush = time.monotonic() + INTERVAL_S
                    self._flush()
        except Ended as ended:
            return ended.code

    def _on_read(self, source: socket.socket | int, callback: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, lambda _events: callback())

    # -- clients ---------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if self._clients >= _MAX_CLIENTS:
            sock.close()
            return
        client = Connection(sock, self._max)
        self._clients += 1
        self._selector.register(
            sock, selectors.EVENT_READ, lambda events: self._serve(client, sock, events)
        )

    def _serve(self, client: Connection, sock: socket.socket, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            client.flush()
        if events & selectors.EVENT_READ and not client.closed:
            client.receive()
        fatal = False
        while not fatal and (request := client.next_request()) is not None:
            reply, fatal = self._api.serve(request)
            client.reply(reply)
            if self._watched is not None:
                self._note_events(self._watched)
        if client.closed:
            self._selector.unregister(sock)
            self._clients -= 1
        else:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.wants_write else 0)
            self._selector.modify(sock, wanted, self._selector.get_key(sock).data)
        if fatal:
            self._log.error("Failed to build MicroVM: Loading snapshot failed..")
            raise Ended(1)

    # -- the guest -------------------------------------------------------------------------------

    def _watch_guest(self) -> None:
        guest = self._instance.guest
        if guest is self._watched:
            return
        self._watched = guest
        if guest is None:
            return
        process = guest.process
        self._on_read(process.qmp.fileno(), self._on_qmp)
        self._on_read(process.stderr_fd, self._on_stderr)
        self._on_read(process.pidfd, self._on_exit)
        if (vsock := self._instance.vsock) is not None:
            self._on_read(vsock.fileno(), vsock.serve)
        self._note_events(guest)

    def _on_qmp(self) -> None:
        guest = self._watched
        if guest is None:
            return
        try:
            guest.process.qmp.poll()
        except QmpGone:
            self._selector.unregister(guest.process.qmp.fileno())
        self._note_events(guest)

    def _note_events(self, guest: Guest) -> None:
        events = guest.process.qmp.events
        while events:
            event = events.popleft()
            name, data = event["event"], event.get("data", {})
            if name == "SHUTDOWN":
                self._reason = str(data.get("reason", ""))
            elif name == "VSERPORT_CHANGE" and (vsock := self._instance.vsock) is not None:
                vsock.port_changed(bool(data["open"]))
            level = self._log.warning if name == "GUEST_PANICKED" else self._log.debug
            level(f"QEMU reports {name} {data}")

    def _on_stderr(self) -> None:
        guest = self._watched
        if guest is None:
            return
        for line in guest.process.stderr_lines():
            self._log.warning(f"QEMU: {line}")

    def _on_exit(self) -> None:
        """QEMU ended: the guest powered off or reset (0), or QEMU failed."""
        guest = self._watched
        if guest is None:
            return
        code = guest.process.wait(_EXIT_TIMEOUT_S)
        self._selector.unregister(guest.process.stderr_fd)
        self._on_stderr()
        self._note_events(guest)
        if code == 0:
            self._log.info(f"Vmm is stopping. {self._reason}".rstrip())
            raise Ended(0)
        how = f"exit code {code}" if code is None or code > 0 else f"signal {-code}"
        self._log.error(f"QEMU ended with {how}.")
        raise Ended(1)

    # -- the rest --------------------------------------------------------------------------------

    def _next_wake(self) -> float:
        wakes = [self._next_flush]
        if self._instance.presses_left:
            wakes.append(self._next_press)
        else:
            self._next_press = time.monotonic() + POWER_INTERVAL_S
        vsock = self._instance.vsock
        if vsock is not None and vsock.deadline is not None:
            wakes.append(vsock.deadline)
        return min(wakes)

    def _press_again(self) -> None:
        self._next_press = time.monotonic() + POWER_INTERVAL_S
        try:
            self._instance.press_power_again()
        except Fault as fault:
            self._log.debug(fault.message)

    def _flush(self) -> None:
        try:
            self._instance.flush_metrics()
        except Fault as fault:
            self._log.error(fault.message)

    def _catch_signals(self) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_end)
        for number in _SIGNALS:
            signal.signal(number, lambda _number, _frame: None)

        def caught() -> None:
            self.signal = os.read(read_end, 1)[0]
            raise Ended(128 + self.signal)

        self._on_read(read_end, caught)
