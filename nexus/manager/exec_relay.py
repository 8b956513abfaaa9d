"""The middle of an exec stream: from a host's agent to the user's WebSocket, or into one answer."""

from collections.abc import Awaitable, Callable

import anyio
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import TypeAdapter, ValidationError
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from nexus import streams
from nexus.api.errors import HostUnreachable, NexusError
from nexus.api.guest import (
    MAX_OUTPUT_BYTES,
    STDERR,
    STDIN,
    STDOUT,
    ExecEnd,
    ExecExit,
    ExecRequest,
    ExecResult,
    ExecStart,
    ExecStdinEnd,
)
from nexus.manager.agents import AgentRefused

PIECE_BYTES = 65536
_end: TypeAdapter[ExecEnd] = TypeAdapter(ExecEnd)

Ended = ExecExit | NexusError


async def relay(socket: WebSocket, guest: ClientConnection) -> Ended | None:
    """Carries messages both ways until the program ends, or the user leaves (None)."""
    ended: Ended | None = None
    async with anyio.create_task_group() as tasks:

        async def to_user() -> None:
            nonlocal ended
            try:
                ended = await _read(guest, socket.send_bytes)
            except (WebSocketDisconnect, RuntimeError):
                ended = None
            tasks.cancel_scope.cancel()

        async def to_guest() -> None:
            gone = False
            while (message := await socket.receive())["type"] != "websocket.disconnect":
                data = message.get("bytes")
                try:
                    if not gone:
                        await guest.send(data if data is not None else message.get("text") or "")
                except ConnectionClosed:
                    # It ended; how, is still to be read.
                    gone = True
            tasks.cancel_scope.cancel()

        async def watch() -> None:
            await streams.gone(socket)
            tasks.cancel_scope.cancel()

        tasks.start_soon(to_user)
        tasks.start_soon(to_guest)
        tasks.start_soon(watch)
    return ended


async def collect(guest: ClientConnection, request: ExecRequest) -> ExecResult:
    """Gives a program all its input and keeps the beginning of its output.

    Raises NexusError when it does not run to its end.
    """
    kept = {STDOUT: bytearray(), STDERR: bytearray()}
    truncated = False
    ended: Ended | None = None

    async def keep(message: bytes) -> None:
        nonlocal truncated
        output = kept.get(message[0], bytearray())
        room = MAX_OUTPUT_BYTES - len(output)
        truncated = truncated or len(message) - 1 > room
        output += message[1 : 1 + room]

    async def feed() -> None:
        data = request.input()
        try:
            await guest.send(_start(request).model_dump_json())
            for at in range(0, len(data), PIECE_BYTES):
                await guest.send(bytes([STDIN]) + data[at : at + PIECE_BYTES])
            await guest.send(ExecStdinEnd().model_dump_json())
        except ConnectionClosed:
            return  # it ended without reading all of its input

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed)
        ended = await _read(guest, keep)
        tasks.cancel_scope.cancel()
    if not isinstance(ended, ExecExit):
        raise ended or _broke_off()
    return ExecResult.of(
        ended.exit_code,
        bytes(kept[STDOUT]),
        bytes(kept[STDERR]),
        truncated=truncated,
        encoding=request.encoding,
    )


def _start(request: ExecRequest) -> ExecStart:
    return ExecStart(argv=request.argv, env=request.env, cwd=request.cwd, user=request.user)


async def _read(guest: ClientConnection, take: Callable[[bytes], Awaitable[None]]) -> Ended:
    """Hands on all output, and returns how it ended."""
    try:
        async for message in guest:
            if isinstance(message, str):
                return _how(message)
            if message:
                await take(message)
    except ConnectionClosed:
        return _broke_off()
    return _broke_off()


def _how(message: str) -> Ended:
    try:
        end = _end.validate_json(message)
    except ValidationError as error:
        return HostUnreachable(
            f"the agent says what is not understood: {str(error)[:300]}",
            suggestion="bring manager and agent to the same version",
        )
    return end if isinstance(end, ExecExit) else AgentRefused(end.error)


def _broke_off() -> HostUnreachable:
    return HostUnreachable(
        "the host's agent broke off", suggestion="see whether it runs: nexus host ls"
    )
