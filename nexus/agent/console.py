"""The serial console over a WebSocket: keys to the guest, its output back, both as bytes."""

import os
from pathlib import Path

import anyio
from fastapi import WebSocket, WebSocketDisconnect

from nexus.agent.follow import FileWatch, follow
from nexus.agent.layout import VmPaths

BACKLOG_BYTES = 4096
KEYS_TIMEOUT_S = 30.0
"""How long keys wait for a guest that does not read them."""


async def serve(socket: WebSocket, paths: VmPaths, watch: FileWatch) -> None:
    """Connects an accepted WebSocket with the console until either side ends."""
    async with anyio.create_task_group() as tasks:

        async def output() -> None:
            size = paths.console_log.stat().st_size
            async for chunk in follow(paths.console_log, max(0, size - BACKLOG_BYTES), watch):
                await socket.send_bytes(chunk)
            await socket.close(code=1000, reason="the VM is gone")
            tasks.cancel_scope.cancel()

        tasks.start_soon(output)
        try:
            await _input(socket, paths.console_in)
        except WebSocketDisconnect:
            tasks.cancel_scope.cancel()


async def _input(socket: WebSocket, fifo: Path) -> None:
    # Read and write: opening for writing alone fails while no VMM runs.
    descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1000))
            text = message.get("text")
            keys = message.get("bytes") or (text.encode() if text else b"")
            await _type(descriptor, keys)
    finally:
        os.close(descriptor)


async def _type(descriptor: int, keys: bytes) -> None:
    """Writes all keys; those that nobody reads in time are dropped, as a serial line does."""
    with anyio.move_on_after(KEYS_TIMEOUT_S):
        while keys:
            try:
                keys = keys[os.write(descriptor, keys) :]
            except BlockingIOError:
                await anyio.wait_writable(descriptor)
