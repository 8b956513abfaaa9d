"""The agent's routes into guests: programs over a WebSocket, files, and what a guest says."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI, Query, WebSocket, WebSocketDisconnect
from fastapi import Path as PathParameter
from pydantic import TypeAdapter, ValidationError
from starlette.requests import HTTPConnection

from nexus import streams
from nexus.agent import guest
from nexus.agent.guest_frames import OUTPUT
from nexus.agent.layout import is_vm_id
from nexus.api.common import Ok, Page, Uuid
from nexus.api.errors import GuestFault, NexusError, NotFound
from nexus.api.guest import (
    MAX_UPLOAD_BYTES,
    STDERR,
    STDIN,
    STDOUT,
    ExecControl,
    ExecExit,
    ExecResize,
    ExecSignal,
    GuestEntry,
    GuestFile,
    GuestInfo,
    GuestPath,
    Written,
)

VmId = Annotated[Uuid, PathParameter()]
InGuest = Annotated[GuestPath, Query()]
Mode = Annotated[str, Query(pattern=r"^[0-7]{3,4}$")]
Body = Annotated[AsyncIterator[bytes], Depends(streams.upload(MAX_UPLOAD_BYTES))]

SocketOf = Callable[[HTTPConnection, str], Path]
"""The vsock socket of a running VM. Raises NotFound, or InvalidState when it does not run."""

Ready = Callable[[HTTPConnection, str], Awaitable[Path]]
"""The same, once the guest has booted and its agent listens, or has had the time for that."""

_control: TypeAdapter[ExecControl] = TypeAdapter(ExecControl)


def add(app: FastAPI, socket_of: SocketOf, ready: Ready) -> None:
    """Adds the routes to an agent's application."""
    _add_files(app, ready)

    @app.get("/agent/v1/vms/{vm_id}/guest")
    async def get_guest(connection: HTTPConnection, vm_id: VmId) -> GuestInfo:
        return await guest.health(socket_of(connection, vm_id))

    @app.websocket("/agent/v1/vms/{vm_id}/exec")
    async def open_exec(socket: WebSocket, vm_id: str) -> None:
        await socket.accept()
        try:
            start = await streams.read_start(socket)
            if not is_vm_id(vm_id):
                raise NotFound("not a VM id")
            async with guest.run(await ready(socket, vm_id), start) as process:
                ended = await carry(socket, process)
            await streams.end(socket, ended)
        except NexusError as error:
            await streams.end(socket, error)
        except WebSocketDisconnect:
            return


def _add_files(app: FastAPI, ready: Ready) -> None:
    @app.get("/agent/v1/vms/{vm_id}/files")
    async def get_file(connection: HTTPConnection, vm_id: VmId, path: InGuest) -> streams.Download:
        async with AsyncExitStack() as held:
            file, content = await held.enter_async_context(
                guest.get(await ready(connection, vm_id), path)
            )
            headers = {
                "x-nexus-file-mode": f"{file.mode:04o}",
                "x-nexus-file-size": str(file.size_bytes),
            }
            return streams.Download(content, held.pop_all().aclose, headers)

    @app.put("/agent/v1/vms/{vm_id}/files")
    async def put_file(
        connection: HTTPConnection, vm_id: VmId, path: InGuest, body: Body, mode: Mode = "0644"
    ) -> Written:
        try:
            size = await guest.put(await ready(connection, vm_id), path, int(mode, 8), body)
        except NexusError:
            await streams.drain(body)
            raise
        return Written(path=path, size_bytes=size)

    @app.get("/agent/v1/vms/{vm_id}/files/stat")
    async def stat_file(connection: HTTPConnection, vm_id: VmId, path: InGuest) -> GuestFile:
        return await guest.stat(await ready(connection, vm_id), path)

    @app.get("/agent/v1/vms/{vm_id}/files/list")
    async def list_files(
        connection: HTTPConnection, vm_id: VmId, path: InGuest
    ) -> Page[GuestEntry]:
        return Page(items=await guest.list_directory(await ready(connection, vm_id), path))

    @app.post("/agent/v1/vms/{vm_id}/files/mkdir")
    async def make_directory(
        connection: HTTPConnection, vm_id: VmId, path: InGuest, mode: Mode = "0755"
    ) -> Ok:
        await guest.make_directory(await ready(connection, vm_id), path, int(mode, 8))
        return Ok()


async def carry(socket: WebSocket, process: guest.Process) -> ExecExit | NexusError | None:
    """Carries input and output until the program ends, something fails, or the user leaves (None).

    Returns how it ended.
    """
    ended: ExecExit | NexusError | None = None
    async with anyio.create_task_group() as tasks:

        async def output() -> None:
            nonlocal ended
            try:
                async for piece in process:
                    if isinstance(piece, ExecExit):
                        ended = piece
                    else:
                        stream = STDOUT if piece[0] == OUTPUT else STDERR
                        await socket.send_bytes(bytes([stream]) + piece[1])
            except NexusError as error:
                ended = error
            except (WebSocketDisconnect, RuntimeError):
                ended = None
            tasks.cancel_scope.cancel()

        async def user() -> None:
            nonlocal ended
            try:
                await _input(socket, process)
            except NexusError as error:
                ended = error
            except WebSocketDisconnect:
                ended = None
            tasks.cancel_scope.cancel()

        async def watch() -> None:
            await streams.gone(socket)
            tasks.cancel_scope.cancel()

        tasks.start_soon(output)
        tasks.start_soon(user)
        tasks.start_soon(watch)
    return ended


async def _input(socket: WebSocket, process: guest.Process) -> None:
    """Until the user leaves. Raises WebSocketDisconnect, or ValidationFailed."""
    gone = False
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        try:
            if not gone:
                await _give(process, message.get("bytes"), message.get("text"))
        except GuestFault:
            # It ended: how, is still to be read from its output. What else is typed is too late.
            gone = True


async def _give(process: guest.Process, data: bytes | None, text: str | None) -> None:
    if data is not None:
        if data[:1] == bytes([STDIN]):
            await process.send(data[1:])
        return
    try:
        control = _control.validate_json(text or "")
    except ValidationError as error:
        raise streams.not_understood("a control message", error) from error
    if isinstance(control, ExecResize):
        await process.resize(control.rows, control.cols)
    elif isinstance(control, ExecSignal):
        await process.signal(control.signal)
    else:
        await process.end_input()
