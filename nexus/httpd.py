"""The HTTP edge that manager and agent share.

Request ids both ways, the error envelope for every non-2xx, a bound on request bodies, JSON access
logs, and a server that listens on TCP or on a unix socket of mode 0600.
"""

import gc
import json
import logging
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nexus.api.errors import (
    ClientGone,
    ErrorBody,
    ErrorCode,
    MethodNotAllowed,
    NexusError,
    PayloadTooLarge,
    code_for_status,
)
from nexus.ids import new_id

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
T = TypeVar("T")

log = structlog.get_logger("http")

MAX_BODY_BYTES = 1 << 20
MAX_HEAD_BYTES = 1 << 16
YOUNG_OBJECTS = 10_000
"""So many are made before the collector looks for rings among them; a long list makes fewer."""
REST_BYTES = 8 << 20
REST_TIMEOUT_S = 2.0
"""So much of a refused body is still taken, for so long."""
_REQUEST_ID = re.compile(rb"^[A-Za-z0-9._-]{1,128}$")


class _BodyTooLarge(HTTPException):
    """An HTTP exception, so that frameworks which read bodies pass it on as it is."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body is larger than {limit} bytes")


@dataclass(slots=True)
class BodyBound:
    """How large the body of one request may be. ``nexus.streams.upload`` raises it for a route
    that never holds the body."""

    max_bytes: int


class Edge:
    """ASGI middleware: request id, body bound, UTF-8 paths, last-resort 500, access log."""

    def __init__(self, app: App, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given.decode("ascii") if _REQUEST_ID.match(given) else new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            if scope["type"] == "websocket":
                await self.app(scope, receive, send)
            else:
                await self._http(scope, receive, send, request_id)
        finally:
            structlog.contextvars.unbind_contextvars("request_id")

    async def _http(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        begun = time.perf_counter()
        status = 0
        received = 0
        outstanding = _can_be_taken(dict(scope["headers"]))
        bound = BodyBound(self.max_body_bytes)
        scope["state"]["body_bound"] = bound

        async def bounded_receive() -> Message:
            nonlocal received, outstanding
            message = await receive()
            outstanding = outstanding and message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > bound.max_bytes:
                raise _BodyTooLarge(bound.max_bytes)
            return message

        async def tagged_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if outstanding and status >= 400:
                    await _take_rest(receive)
                message.setdefault("headers", []).append((b"x-request-id", request_id.encode()))
            await send(message)

        async def refuse(code: int, error: ErrorCode, text: str, cure: str | None = None) -> None:
            response = envelope(request_id, code, error, text, suggestion=cure)
            await response(scope, receive, tagged_send)

        try:
            if "�" in scope["path"] or "\x00" in scope["path"]:
                await refuse(400, "bad_request", "the path is not valid UTF-8 text")
            elif b"%00" in scope["query_string"]:
                await refuse(400, "bad_request", "the query holds a NUL")
            else:
                await self.app(scope, bounded_receive, tagged_send)
        except _BodyTooLarge as error:
            if status == 0:
                await refuse(413, "payload_too_large", error.detail)
        except Exception:
            log.exception("unhandled error", path=scope["path"], method=scope["method"])
            if status != 0:
                raise
            await refuse(
                500,
                "internal",
                "an unexpected error; it is in the log under this request id",
                "report it with the log lines of this request id",
            )
        finally:
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.perf_counter() - begun) * 1000, 2),
            )


def _can_be_taken(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request has a body that may be short enough to be thrown away. A sender that
    waits for leave to send it is better told no."""
    if b"expect" in headers:
        return False
    length = headers.get(b"content-length")
    if length is None:
        return b"transfer-encoding" in headers
    return length.isdigit() and 0 < int(length) <= REST_BYTES


async def _take_rest(receive: Receive) -> None:
    """Throws away what is left of a refused body: a connection that is closed before it was read
    is reset, and the answer may be lost with it."""
    taken = 0
    with anyio.move_on_after(REST_TIMEOUT_S):
        while taken < REST_BYTES:
            message = await receive()
            taken += len(message.get("body", b""))
            if not message.get("more_body", False):
                return


def body_of(request_id: str, error: NexusError) -> ErrorBody:
    """An error as the envelope's content, for streams that cannot send an HTTP answer."""
    return ErrorBody(
        error=error.code,
        message=_printable(error.message),
        fault_message=error.fault_message,
        status=error.status,
        suggestion=error.suggestion,
        request_id=request_id,
    )


def envelope(
    request_id: str,
    status: int,
    error: ErrorCode,
    message: str,
    *,
    suggestion: str | None = None,
    fault_message: str | None = None,
) -> JSONResponse:
    body = ErrorBody(
        error=error,
        message=message,
        fault_message=fault_message,
        status=status,
        suggestion=suggestion,
        request_id=request_id,
    )
    return JSONResponse(body.model_dump(exclude_none=True), status_code=status)


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The request's body. Raises PayloadTooLarge as soon as it is known to be larger than that."""
    announced = request.headers.get("content-length", "0")
    body = bytearray()
    if not announced.isdecimal() or int(announced) <= most_bytes:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most_bytes:
                break
        else:
            return bytes(body)
    raise PayloadTooLarge(f"the request body is larger than {most_bytes} bytes")


async def while_connected(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """Does work for a request whose body was read, and breaks it off when the client hangs up.

    Raises ClientGone then, and whatever NexusError the work raises.
    """
    done: list[T] = []
    failed: NexusError = ClientGone("the client hung up")
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            done.append(await work())
        except NexusError as error:
            failed = error
        tasks.cancel_scope.cancel()
    if done:
        return done[0]
    raise failed


def request_id_of(request: Request) -> str:
    return str(request.state.request_id)


def answer(request_id: str, error: NexusError) -> JSONResponse:
    """An error as the envelope, for code that runs outside the routes."""
    response = envelope(
        request_id,
        error.status,
        error.code,
        _printable(error.message),
        suggestion=error.suggestion,
        fault_message=error.fault_message,
    )
    if isinstance(error, MethodNotAllowed):
        response.headers["allow"] = error.allow
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


async def _on_nexus_error(request: Request, exc: Exception) -> JSONResponse:
    if not isinstance(exc, NexusError):
        raise exc
    return answer(request_id_of(request), exc)


async def _on_validation(request: Request, exc: Exception) -> JSONResponse:
    if not isinstance(exc, RequestValidationError):
        raise exc
    problems = []
    for error in exc.errors()[:10]:
        where = ".".join(str(part) for part in error["loc"])
        problems.append(f"{where}: {error['msg']}")
    not_json = any(error["type"] == "json_invalid" for error in exc.errors())
    return envelope(
        request_id_of(request),
        400 if not_json else 422,
        "bad_request" if not_json else "validation_failed",
        _printable("; ".join(problems)),
        suggestion="compare the request with /openapi.json",
    )


async def _on_http_exception(request: Request, exc: Exception) -> JSONResponse:
    if not isinstance(exc, HTTPException):
        raise exc
    response = envelope(
        request_id_of(request),
        exc.status_code,
        code_for_status(exc.status_code),
        _printable(str(exc.detail)),
    )
    response.headers.update(exc.headers or {})
    return response


def _printable(text: str) -> str:
    """Text that survives JSON in UTF-8: lone surrogates from hostile input become ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def install(app: FastAPI, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
    """Gives an application the shared edge: middleware and error handlers."""
    app.add_middleware(Edge, max_body_bytes=max_body_bytes)
    app.add_exception_handler(NexusError, _on_nexus_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http_exception)


def configure_logging(level: str = "INFO") -> None:
    """JSON lines on stderr; the request id of the current request is in each of its lines."""
    logging.basicConfig(level=level, format="%(message)s")
    for noisy in ("httpx", "httpcore", "alembic", "aiosqlite"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=json.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(file=os.fdopen(os.dup(2), "w", buffering=1)),
        cache_logger_on_first_use=True,
    )


def keep_what_is_there() -> None:
    """Call when a service is about to serve: spares the garbage collector what stays for good.

    Modules and types are 150,000 objects and more. To walk through them takes 100 ms in which
    nobody is served.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)


def listen(bind: str) -> socket.socket:
    """A listening socket for ``HOST:PORT``, ``[V6]:PORT`` or ``unix:/path`` (mode 0600).

    A unix socket left by a killed process is replaced; a live one is an error.
    """
    if bind.startswith("unix:"):
        return _listen_unix(Path(bind.removeprefix("unix:")))
    host, _, port = bind.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"bad address {bind!r}; write HOST:PORT, for example 127.0.0.1:18080")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    listener.listen(1024)
    return listener


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if path.exists():
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            raise OSError(f"{path} is already served by another process")
        finally:
            probe.close()
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(1024)
    return listener


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, which refuses what is no HTTP with the envelope and bounds heads."""

    _head_bytes: int | None = None
    """How much of an unfinished head has come; None outside of one."""

    _body_bytes: int = 0
    """How much of the data at hand was the end of a body: a refused upload may precede a head."""

    def data_received(self, data: bytes) -> None:
        self._body_bytes = 0
        super().data_received(data)
        if self._head_bytes is not None and not self.transport.is_closing():
            self._head_bytes += len(data) - self._body_bytes
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"the request's head is larger than {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        request_id = new_id()
        response = envelope(request_id, 400, "bad_request", msg)
        head = [b"HTTP/1.1 400 Bad Request", *(b": ".join(pair) for pair in response.raw_headers)]
        head += [b"x-request-id: " + request_id.encode(), b"connection: close", b"", b""]
        self.transport.write(b"\r\n".join(head) + bytes(response.body))
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's, which ends as well when the application's background work does."""

    @property
    def failed(self) -> bool:
        """Whether it never served, or the application's lifespan ended with an error."""
        return not self.started or bool(self.lifespan.error_occurred)

    async def on_tick(self, counter: int) -> bool:
        # Else it would answer for ever, and do nothing of what it answers.
        if self.lifespan.error_occurred:
            log.critical("the background work has ended; so does the process")
            self.should_exit = True
        return await super().on_tick(counter)


def server(app: App, *, drain_s: int = 3) -> Server:
    """A uvicorn server without its own signal-less logging; run it with ``serve(sockets=[…])``."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=HttpProtocol,
        ws="websockets-sansio",
        ws_max_size=MAX_BODY_BYTES,
        # A side that waits for a slow reader does not read pongs either: that is no dead peer.
        ws_ping_timeout=None,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_s,
    )
    return Server(config)
