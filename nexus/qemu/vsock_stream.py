"""One host program's connection to the vsock's unix socket, from its CONNECT line to its end."""

import contextlib
import re
import socket
from enum import Enum

from nexus.qemu.mux import MAX_PAYLOAD, WINDOW

_LINE_MAX = 32
_CONNECT = re.compile(rb"connect +(\d{1,10})", re.IGNORECASE)
_ACKNOWLEDGE = WINDOW // 4


class Stage(Enum):
    """How far a connection is."""

    GREETING = "its CONNECT line has not come yet"
    OPENING = "the guest was asked"
    OPEN = "the guest's agent is at the other end"
    ENDING = "the guest has closed; what it said is still being delivered"


class Refused(Exception):
    """Whoever connected does not speak the handshake, or asks for a port nobody listens on."""


class Gone(Exception):
    """Whoever connected has hung up."""


class Stream:
    """The host's end of a stream. Buffers are bounded by the windows of the framing."""

    def __init__(self, sock: socket.socket, number: int, deadline: float) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.number = number
        self.stage = Stage.GREETING
        self.deadline = deadline
        """When a stream that is not open yet is given up; on the monotonic clock."""
        self.credit = WINDOW
        """Bytes that the guest still takes from us."""
        self._to_guest = bytearray()
        self._to_host = bytearray()
        self._delivered = 0

    # -- the handshake ---------------------------------------------------------------------------

    def read_greeting(self) -> int | None:
        """The port of a whole CONNECT line, None while it is not whole; raises Refused or Gone."""
        self._to_guest += self._receive(MAX_PAYLOAD)
        line, newline, rest = self._to_guest.partition(b"\n")
        if not newline and len(line) < _LINE_MAX:
            return None
        found = _CONNECT.fullmatch(line.strip())
        if not newline or found is None:
            raise Refused
        self._to_guest = rest
        self.stage = Stage.OPENING
        return int(found[1])

    def accept(self) -> None:
        """The guest's agent took the stream; raises Gone."""
        self.stage = Stage.OPEN
        # Firecracker names the port that its end of the connection got, from 2^30 up. Nothing was
        # sent before, so there is room for it.
        try:
            self.sock.send(b"OK %d\n" % (1 << 30 | self.number))
        except OSError as error:
            raise Gone from error

    # -- host to guest ---------------------------------------------------------------------------

    @property
    def wants_input(self) -> bool:
        """Whether more may be read from the host's program now."""
        if self.stage is Stage.GREETING:
            return True
        return self.stage is Stage.OPEN and self.credit > 0

    def take_input(self) -> bytes:
        """The next bytes for the guest, at most a frame's worth, counted against its credit; raises
        Gone at the end."""
        size = min(self.credit, MAX_PAYLOAD)
        if self._to_guest:
            data = bytes(self._to_guest[:size])
            del self._to_guest[:size]
        else:
            data = self._receive(size)
        self.credit -= len(data)
        return data

    @property
    def has_early_input(self) -> bool:
        """Whether bytes that came along with the CONNECT line still wait for the guest."""
        return self.stage is Stage.OPEN and bool(self._to_guest)

    def _receive(self, size: int) -> bytes:
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise Gone from error
        if not data:
            raise Gone
        return data

    # -- guest to host ---------------------------------------------------------------------------

    @property
    def wants_output(self) -> bool:
        return bool(self._to_host)

    def deliver(self, data: bytes) -> int:
        """Passes on what the guest said, as far as the host's program takes it; the bytes to
        acknowledge to the guest now. Raises Gone, also when the guest exceeds its window."""
        self._to_host += data
        if len(self._to_host) > WINDOW:
            raise Gone
        try:
            while self._to_host:
                sent = self.sock.send(self._to_host)
                del self._to_host[:sent]
                self._delivered += sent
        except BlockingIOError:
            pass
        except OSError as error:
            raise Gone from error
        if self._delivered < _ACKNOWLEDGE:
            return 0
        size, self._delivered = self._delivered, 0
        return size

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()
