"""A small synchronous QMP client (QEMU docs: interop/qmp-spec) on a connected socket.

The VMM does one thing at a time, as Firecracker does; a command waits for its own answer and sets
events aside for the event loop.
"""

import socket
import time
from array import array
from collections import deque
from typing import Any

import msgspec

_RECEIVE = 1 << 16


class QmpGone(Exception):
    """QEMU closed the monitor: it has ended or is ending."""


class QmpRefused(Exception):
    """QEMU answered with an error; the text is its description."""


class QmpTimeout(Exception):
    """QEMU did not answer in time."""


class Qmp:
    """One monitor. ``events`` holds what QEMU reported and nobody has looked at yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.events: deque[dict[str, Any]] = deque()
        self._sock = sock
        self._buffer = b""
        self._decoder = msgspec.json.Decoder(dict[str, Any])

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def negotiate(self, timeout_s: float) -> str:
        """Takes the greeting and leaves negotiation mode; QEMU's version."""
        greeting = self._wait_for("QMP", time.monotonic() + timeout_s)
        version = greeting["QMP"]["version"]["qemu"]
        self.execute("qmp_capabilities")
        return f"{version['major']}.{version['minor']}.{version['micro']}"

    def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        timeout_s: float = 30.0,
        fd: int | None = None,
    ) -> Any:
        """Runs a command and gives its answer; ``fd`` is passed along.

        Raises QmpRefused, QmpGone or QmpTimeout.
        """
        message: dict[str, Any] = {"execute": command}
        if arguments is not None:
            message["arguments"] = arguments
        line = msgspec.json.encode(message) + b"\n"
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
        self._sock.settimeout(timeout_s)
        try:
            self._sock.sendmsg([line], rights)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise QmpGone from error
        answer = self._wait_for("return", time.monotonic() + timeout_s)
        # Events may have come in one piece with the answer; nothing would wake us for them.
        self._sort(None)
        if "error" in answer:
            raise QmpRefused(answer["error"].get("desc", command))
        return answer["return"]

    def wait_event(self, name: str, statuses: tuple[str, ...], *, timeout_s: float) -> str:
        """Waits for an event whose ``status`` is one of these; the status. Other events stay."""
        deadline = time.monotonic() + timeout_s
        seen = 0
        while True:
            for index, event in enumerate(self.events):
                if index < seen or event["event"] != name:
                    continue
                status = str(event.get("data", {}).get("status"))
                if status in statuses:
                    del self.events[index]
                    return status
            seen = len(self.events)
            self._receive(deadline)

    def poll(self) -> None:
        """Takes in what has arrived, without waiting; raises QmpGone at the end."""
        self._sock.settimeout(0)
        try:
            while self._fill():
                pass
        except BlockingIOError:
            return
        finally:
            self._sort(None)

    def _wait_for(self, key: str, deadline: float) -> dict[str, Any]:
        while True:
            answer = self._sort(key)
            if answer is not None:
                return answer
            self._receive(deadline)

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise QmpTimeout
        self._sock.settimeout(left)
        try:
            self._fill()
        except TimeoutError as error:
            raise QmpTimeout from error
        self._sort(None)

    def _fill(self) -> bool:
        try:
            data = self._sock.recv(_RECEIVE)
        except ConnectionResetError as error:
            raise QmpGone from error
        if not data:
            raise QmpGone
        self._buffer += data
        return True

    def _sort(self, key: str | None) -> dict[str, Any] | None:
        """Moves whole events out of the buffer; the first answer, if one is asked for."""
        while b"\n" in self._buffer:
            line, _, rest = self._buffer.partition(b"\n")
            message = self._decoder.decode(line)
            if "event" in message:
                self.events.append(message)
                self._buffer = rest
                continue
            if key is None:
                return None
            self._buffer = rest
            if key in message or "error" in message:
                return message
        return None
