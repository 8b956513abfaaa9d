"""HTTP/1.1 on one connection of the API's socket: bytes in, whole requests out, answers back.

The rules of HTTP are h11's. Answers carry Firecracker's headers and no reason phrase.
"""

import contextlib
import socket

import h11
import msgspec

METHODS = (b"GET", b"PUT", b"PATCH")
_DROPPED = "All previous unanswered requests will be dropped."
_RECEIVE = 1 << 16


class Request(msgspec.Struct):
    """A whole request."""

    method: str
    target: str
    body: bytes


class Reply(msgspec.Struct):
    """An answer; ``body`` is JSON or empty (204). ``deprecated`` marks use of an old field."""

    status: int = 204
    body: bytes = b""
    deprecated: bool = False


class _Partial(msgspec.Struct):
    request: h11.Request
    body: bytearray = msgspec.field(default_factory=bytearray)


class Connection:
    """One client. ``closed`` is set when it is done with."""

    def __init__(self, sock: socket.socket, max_payload_bytes: int) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.closed = False
        self._max = max_payload_bytes
        self._h11 = h11.Connection(h11.SERVER)
        self._partial: _Partial | None = None
        self._out = bytearray()
        self._last = False

    @property
    def wants_write(self) -> bool:
        return bool(self._out)

    def receive(self) -> None:
        """Takes in what the client sent; what ended the connection ends it here too."""
        try:
            data = self.sock.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._h11.receive_data(data)

    def next_request(self) -> Request | None:
        """The next whole request, if there is one; a broken one is refused here."""
        if self._last or self.closed:
            return None
        try:
            return self._next()
        except h11.RemoteProtocolError as error:
            self._refuse(f"Invalid HTTP request: {error}.")
            return None

    def _next(self) -> Request | None:
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                if self._h11.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    self._out += self._h11.send(go_on) or b""
                    self.flush()
                return None
            if event is h11.PAUSED:
                return None
            if isinstance(event, h11.ConnectionClosed):
                self.close()
                return None
            if isinstance(event, h11.Request):
                if event.method not in METHODS:
                    self._refuse("Invalid HTTP Method: Unsupported HTTP method.")
                    return None
                announced = dict(event.headers).get(b"content-length", b"0")
                if int(announced) > self._max:
                    self._too_large(int(announced))
                    return None
                self._partial = _Partial(event)
            elif isinstance(event, h11.Data) and self._partial is not None:
                self._partial.body += event.data
                if len(self._partial.body) > self._max:
                    self._too_large(len(self._partial.body))
                    return None
            elif isinstance(event, h11.EndOfMessage) and self._partial is not None:
                whole, self._partial = self._partial, None
                return Request(
                    whole.request.method.decode("ascii"),
                    whole.request.target.decode("latin-1"),
                    bytes(whole.body),
                )

    def reply(self, answer: Reply) -> None:
        """Answers the last request."""
        headers = [("Server", "Firecracker API"), ("Connection", "keep-alive")]
        if answer.deprecated:
            headers.append(("Deprecation", "true"))
        if answer.body:
            headers.append(("Content-Type", "application/json"))
        if answer.status != 204:
            headers.append(("Content-Length", str(len(answer.body))))
        response = h11.Response(status_code=answer.status, headers=headers, reason=b"")
        for event in (response, h11.Data(data=answer.body), h11.EndOfMessage()):
            self._out += self._h11.send(event) or b""
        if self._h11.our_state is h11.MUST_CLOSE:
            self._last = True
        self.flush()

    def flush(self) -> None:
        """Sends what can be sent without waiting."""
        try:
            while self._out:
                del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self._last:
            self.close()

    def close(self) -> None:
        self.closed = True
        with contextlib.suppress(OSError):
            self.sock.close()

    def _too_large(self, size: int) -> None:
        self._refuse(
            f"Request payload with size {size} is larger than the limit of {self._max} allowed by "
            "server."
        )

    def _refuse(self, reason: str) -> None:
        """Refuses what cannot be read as a request, in Firecracker's words, and hangs up."""
        body = msgspec.json.encode({"error": f"{reason}\n{_DROPPED}"})
        self._last = True
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.reply(Reply(400, body))
