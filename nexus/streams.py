"""What both servers need to pass streams through without holding them: bodies both ways, and the
WebSocket that carries a program's input and output (docs/exec.md)."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import anyio
import structlog
from fastapi import Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from nexus.api.common import Wire
from nexus.api.errors import (
    ClientLeft,
    NexusError,
    PayloadTooLarge,
    TimedOut,
    ValidationFailed,
)
from nexus.api.guest import ExecFailed, ExecStart
from nexus.httpd import BodyBound, body_of

log = structlog.get_logger("streams")

BEAT_S = 10.0
"""How often an exec stream's other side is asked whether it is still there."""
MEDIA_TYPE = "application/octet-stream"
DRAIN_TIMEOUT_S = 30.0
"""How long the rest of a refused upload is read, so that its sender gets to read the answer."""
START_TIMEOUT_S = 10.0
"""How long the first message of an exec stream may take."""


class UnsupportedMediaType(NexusError):
    code = "unsupported_media_type"
    status = 415


def upload(max_bytes: int) -> Callable[[Request], Awaitable[AsyncIterator[bytes]]]:
    """A route's dependency: the request's body as it comes, never held, at most ``max_bytes``.

    Such a body must be ``application/octet-stream``: JSON is read as a whole before any route.
    """

    async def body(request: Request) -> AsyncIterator[bytes]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != MEDIA_TYPE:
            raise UnsupportedMediaType(
                "a file's content is sent as it is", suggestion=f"send content-type: {MEDIA_TYPE}"
            )
        announced = request.headers.get("content-length", "0")
        if int(announced) > max_bytes:
            raise PayloadTooLarge(f"a file of {announced} bytes; {max_bytes} is most")
        bound = request.state.body_bound
        if isinstance(bound, BodyBound):
            bound.max_bytes = max_bytes
        return _content(request)

    return body


async def _content(request: Request) -> AsyncIterator[bytes]:
    """Raises ClientLeft when the sender goes before its end, PayloadTooLarge beyond the bound."""
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect as error:
        raise ClientLeft("the sender left before the end of the file") from error
    except HTTPException as error:
        raise PayloadTooLarge(str(error.detail)) from error


async def drain(body: AsyncIterator[bytes]) -> None:
    """Throws away what is left of an upload that is being refused."""
    with anyio.move_on_after(DRAIN_TIMEOUT_S):
        try:
            async for _ in body:
                pass
        except NexusError:
            # Gone, or beyond the bound: there is nobody left to wait for.
            return


class Download(StreamingResponse):
    """Bytes as they come. ``close`` is called however it ends.

    When the source fails midway the connection breaks off, so that no reader takes a part for the
    whole.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        content: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(content, headers={"x-content-type-options": "nosniff", **headers})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._close()

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except NexusError as error:
            log.warning("a download broke off", error=error.message)


# -- programs ------------------------------------------------------------------------------------


async def read_start(socket: WebSocket) -> ExecStart:
    """The first message of an accepted WebSocket: what is to be run.

    Raises ValidationFailed, TimedOut, or WebSocketDisconnect.
    """
    try:
        with anyio.fail_after(START_TIMEOUT_S):
            message = await socket.receive()
    except TimeoutError as error:
        raise TimedOut(f"no request came within {START_TIMEOUT_S:.0f} s") from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    try:
        return ExecStart.model_validate_json(message.get("text") or "")
    except ValidationError as error:
        raise not_understood("an exec request", error) from error


def not_understood(what: str, error: ValidationError) -> ValidationFailed:
    """A message that is not what it should be, in words."""
    problems = (
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors()[:10]
    )
    return ValidationFailed(
        f"not {what}: {'; '.join(problems)}", suggestion="compare it with docs/exec.md"
    )


async def gone(socket: WebSocket) -> None:
    """Returns when the other side has vanished, also while nobody receives from it.

    What it sends waits while a program does not read, and with it the news that it left; so it is
    sent an empty message now and then, which fails.
    """
    try:
        while True:
            await anyio.sleep(BEAT_S)
            await socket.send_bytes(b"")
    except (WebSocketDisconnect, RuntimeError):
        return


async def end(socket: WebSocket, how: Wire | NexusError | None) -> None:
    """Says how a stream ended, and closes it; None when the other side is gone already."""
    try:
        if isinstance(how, NexusError):
            request_id = socket.scope["state"]["request_id"]
            how = ExecFailed(error=body_of(request_id, how))
        if how is not None:
            await socket.send_text(how.model_dump_json())
            await socket.close()
    except (WebSocketDisconnect, RuntimeError):
        # Whom it concerns has left meanwhile.
        return
