"""The vsock device's host side: Firecracker's unix socket, carried by a virtio-serial port.

A host program connects, says ``CONNECT 1024`` and is answered ``OK n`` once the guest's agent has
taken the stream (Firecracker docs: vsock). QEMU has no vsock device with a unix socket behind it,
so all streams share one port of a virtio-serial device, framed as ``mux`` does.
"""

import errno
import os
import select
import socket
import time

from nexus.qemu import mux
from nexus.qemu.faults import Fault, os_error
from nexus.qemu.vsock_stream import Gone, Refused, Stage, Stream

AGENT_PORT = 1024
OPEN_TIMEOUT_S = 2.0
"""How long the guest's agent may take to answer before a connection is closed without an OK."""

MAX_STREAMS = 64
_OUT_MAX = 256 << 10
_RECEIVE = 64 << 10
_PATH_MAX = 108


class Vsock:
    """One device. ``fileno`` becomes readable when ``serve`` has something to do; ``expire`` is due
    at ``deadline``."""

    def __init__(self, path: str, refused: str) -> None:
        """Listens on ``path``; raises Fault."""
        self.path = path
        self._listener = _listen(path, refused)
        self._epoll = select.epoll()
        self._port: socket.socket | None = None
        self.port_open = False
        """Whether the guest's agent has opened the port."""
        self._choked = False
        self._reader = mux.Reader(b"")
        self._out = bytearray()
        self._streams: dict[int, Stream] = {}
        self._by_fd: dict[int, Stream] = {}
        self._numbers = 0
        self._watched: dict[int, int] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def attach(self, port: socket.socket, *, is_open: bool) -> None:
        """Takes our end of the port of a machine that was just made; a loaded one may have had it
        open when it was saved."""
        port.setblocking(False)
        self._port = port
        self._watch(self._listener, select.EPOLLIN)
        self._watch(port, select.EPOLLIN)
        self.port_changed(is_open)

    def port_changed(self, is_open: bool) -> None:
        """QEMU says that the guest opened the port, or that it left it."""
        if is_open != self.port_open:
            self.port_open = is_open
            self._begin()

    @property
    def deadline(self) -> float | None:
        """When the first connection that is not open yet is given up."""
        waiting = [s.deadline for s in self._streams.values() if _is_waiting(s)]
        return min(waiting, default=None)

    def expire(self) -> None:
        """Closes the connections whose time is over."""
        now = time.monotonic()
        for stream in list(self._streams.values()):
            if _is_waiting(stream) and stream.deadline <= now:
                self._end(stream, tell=stream.stage is Stage.OPENING)
        self._flush()

    def serve(self) -> None:
        """Does what can be done now, without waiting."""
        for fd, events in self._epoll.poll(0):
            stream = self._by_fd.get(fd)
            if stream is not None:
                self._serve_stream(stream, events)
            elif fd == self._listener.fileno():
                self._accept()
            elif self._port is not None and fd == self._port.fileno():
                self._serve_port(self._port, events)
        self._flush()

    def detach(self) -> None:
        """Lets go of the machine; the socket stays."""
        for stream in list(self._streams.values()):
            self._end(stream, tell=False)
        if self._port is not None:
            self._unwatch(self._port)
            self._port.close()
            self._port = None
            self.port_open = False
            self._unwatch(self._listener)

    def remove(self) -> None:
        """Closes everything and takes the socket away; another device takes its place."""
        self.detach()
        self._listener.close()
        self._epoll.close()
        if os.path.lexists(self.path):
            os.unlink(self.path)  # noqa: PTH108 - pathlib is not imported otherwise

    # -- the host's programs ---------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self._streams) >= MAX_STREAMS:
            sock.close()
            return
        self._numbers += 1
        stream = Stream(sock, self._numbers, time.monotonic() + OPEN_TIMEOUT_S)
        self._streams[stream.number] = stream
        self._by_fd[sock.fileno()] = stream
        self._interest(stream)

    def _serve_stream(self, stream: Stream, events: int) -> None:
        try:
            if stream.stage is Stage.GREETING:
                self._greet(stream)
            if events & select.EPOLLOUT:
                self._deliver(stream, b"")
            if stream.wants_input and not self._choked:
                self._take_input(stream)
            elif events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                raise Gone
        except Refused:
            self._end(stream, tell=False)
        except Gone:
            self._end(stream, tell=True)
        else:
            self._interest(stream)

    def _greet(self, stream: Stream) -> None:
        port = stream.read_greeting()
        if port is None:
            return
        if port != AGENT_PORT or not self.port_open:
            raise Refused
        stream.deadline = time.monotonic() + OPEN_TIMEOUT_S
        if not self._reader.synced:
            return  # asked when it answers
        self._send(mux.Frame(mux.OPEN, stream.number))

    def _take_input(self, stream: Stream) -> None:
        if stream.stage is Stage.OPEN and (data := stream.take_input()):
            self._send(mux.Frame(mux.DATA, stream.number, data))

    def _deliver(self, stream: Stream, data: bytes) -> None:
        size = stream.deliver(data)
        if size and stream.stage is Stage.OPEN:
            self._send(mux.credit(stream.number, size))
        if stream.stage is Stage.ENDING and not stream.wants_output:
            self._end(stream, tell=False)

    def _end(self, stream: Stream, *, tell: bool) -> None:
        if self._streams.pop(stream.number, None) is None:
            return
        self._unwatch(stream.sock)
        del self._by_fd[stream.sock.fileno()]
        stream.close()
        if tell and stream.stage in (Stage.OPENING, Stage.OPEN):
            self._send(mux.Frame(mux.CLOSE, stream.number))

    # -- the guest -------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A new conversation; streams of the one before are over."""
        for stream in list(self._streams.values()):
            if stream.stage is not Stage.GREETING:
                self._end(stream, tell=False)
        self._out.clear()
        nonce = os.urandom(mux.NONCE_SIZE)
        self._reader = mux.Reader(nonce)
        if self.port_open:
            self._out += mux.call(nonce)
        self._flush()

    def _serve_port(self, port: socket.socket, events: int) -> None:
        if not events & select.EPOLLIN:
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self._unwatch(port)  # QEMU has ended; the server sees that, too
            return
        try:
            data = port.recv(_RECEIVE)
        except OSError:
            return
        was_synced = self._reader.synced
        try:
            for frame in self._reader.feed(data):
                self._take_frame(frame)
        except mux.Garbled:
            self._begin()
            return
        if self._reader.synced and not was_synced:
            self._ask_for_waiting()

    def _ask_for_waiting(self) -> None:
        for stream in self._streams.values():
            if stream.stage is Stage.OPENING:
                self._send(mux.Frame(mux.OPEN, stream.number))

    def _take_frame(self, frame: mux.Frame) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None:
            return  # it was closed here while this was under way
        try:
            if frame.kind == mux.ACCEPT and stream.stage is Stage.OPENING:
                stream.accept()
                while stream.has_early_input and stream.credit:
                    self._send(mux.Frame(mux.DATA, stream.number, stream.take_input()))
            elif frame.kind == mux.DATA and stream.stage is Stage.OPEN:
                self._deliver(stream, frame.payload)
            elif frame.kind == mux.CREDIT:
                stream.credit = min(stream.credit + frame.credit, mux.WINDOW)
            elif frame.kind == mux.CLOSE and stream.wants_output:
                stream.stage = Stage.ENDING
            elif frame.kind == mux.CLOSE:
                self._end(stream, tell=False)
        except Gone:
            self._end(stream, tell=True)
        self._interest(stream)

    def _send(self, frame: mux.Frame) -> None:
        self._out += mux.encode(frame)

    def _flush(self) -> None:
        """Writes to the port what it takes, and reads from programs only while it takes enough."""
        if self._port is None:
            return
        try:
            while self._out:
                del self._out[: self._port.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()  # QEMU has ended
        self._watch(self._port, select.EPOLLIN | (select.EPOLLOUT if self._out else 0))
        if self._choked != (len(self._out) >= _OUT_MAX):
            self._choked = not self._choked
            for stream in self._streams.values():
                self._interest(stream)

    # -- what to wait for ------------------------------------------------------------------------

    def _interest(self, stream: Stream) -> None:
        if stream.number not in self._streams:
            return
        wanted = select.EPOLLRDHUP
        if stream.wants_input and not self._choked:
            wanted = select.EPOLLIN
        if stream.wants_output:
            wanted |= select.EPOLLOUT
        self._watch(stream.sock, wanted)

    def _watch(self, source: socket.socket, wanted: int) -> None:
        fd = source.fileno()
        known = self._watched.get(fd)
        if known is None:
            self._epoll.register(fd, wanted)
        elif known != wanted:
            self._epoll.modify(fd, wanted)
        self._watched[fd] = wanted

    def _unwatch(self, source: socket.socket) -> None:
        if self._watched.pop(source.fileno(), None) is not None:
            self._epoll.unregister(source.fileno())


def _is_waiting(stream: Stream) -> bool:
    return stream.stage in (Stage.GREETING, Stage.OPENING)


def _listen(path: str, refused: str) -> socket.socket:
    """A listening socket; what fails is said in the words of Firecracker's library."""
    if "\0" in path:
        raise Fault(f"{refused}paths must not contain interior null bytes")
    if len(os.fsencode(path)) >= _PATH_MAX:
        raise Fault(f"{refused}path must be shorter than SUN_LEN")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(path)
        listener.listen(MAX_STREAMS)
    except OSError as error:
        listener.close()
        in_use = error.errno == errno.EADDRINUSE
        text = f"Address in use (os error {error.errno})" if in_use else os_error(error)
        raise Fault(f"{refused}{text}") from error
    return listener
