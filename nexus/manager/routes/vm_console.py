"""What a VM's host shows of it: logs, the serial console, and the VMM's own API."""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
import structlog
from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from nexus.api.common import Item
from nexus.api.errors import InvalidState, NexusError
from nexus.api.vms import LogChunk, LogSource
from nexus.manager.agents import Agent
from nexus.manager.routes.parts import VmRef
from nexus.manager.runtime import Nexus, Runtime
from nexus.manager.security import Principal, require

log = structlog.get_logger("console")
router = APIRouter(prefix="/v1/vms", tags=["vms"])

Reader = Annotated[Principal, require("vms:read")]
Operator = Annotated[Principal, require("vms:console")]

TRY_AGAIN_LATER = 1013
POLICY_VIOLATION = 1008


@router.get("/{ref}/logs", response_model=Item[LogChunk])
async def logs(
    ref: VmRef,
    nexus: Nexus,
    principal: Reader,
    source: LogSource = "console",
    tail: Annotated[int, Query(ge=0, le=10000, description="The last so many lines.")] = 100,
    follow: Annotated[bool, Query(description="Stream text as it is written.")] = False,
) -> Item[LogChunk] | StreamingResponse:
    """The last lines of a log; with ``follow`` as plain text that goes on."""
    vm_id, agent = await _agent_of(nexus, principal, ref)
    chunk = await agent.logs(vm_id, source, tail=tail)
    if not follow:
        return Item(item=chunk)
    return StreamingResponse(
        _follow(agent, vm_id, source, chunk), media_type="text/plain; charset=utf-8"
    )


async def _follow(
    agent: Agent, vm_id: str, source: LogSource, chunk: LogChunk
) -> AsyncIterator[bytes]:
    if chunk.lines:
        yield ("\n".join(chunk.lines) + "\n").encode()
    try:
        async with agent.follow_logs(vm_id, source, offset=chunk.offset) as news:
            async for part in news:
                yield part
    except NexusError as error:
        # The status line is long sent; a stream can only end.
        log.info("a followed log ended", vm_id=vm_id, error=error.message)


@router.websocket("/{ref}/console")
async def console(socket: WebSocket, ref: VmRef, nexus: Nexus, principal: Operator) -> None:
    """The serial console: bytes both ways."""
    try:
        vm_id, agent = await _agent_of(nexus, principal, ref)
        opening = agent.console(vm_id)
        async with opening as guest:
            await socket.accept()
            await _relay(socket, guest)
    except NexusError as error:
        code = TRY_AGAIN_LATER if error.status >= 500 else POLICY_VIOLATION
        await socket.close(code, error.message[:120])


async def _relay(socket: WebSocket, guest: ClientConnection) -> None:
    """Carries bytes until either side ends."""
    async with anyio.create_task_group() as tasks:

        async def to_user() -> None:
            with contextlib.suppress(ConnectionClosed, WebSocketDisconnect, RuntimeError):
                async for data in guest:
                    await socket.send_bytes(data if isinstance(data, bytes) else data.encode())
                await socket.close()
            tasks.cancel_scope.cancel()

        tasks.start_soon(to_user)
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                data = message.get("bytes")
                text = message.get("text")
                await guest.send(data if data is not None else (text or "").encode())
        tasks.cancel_scope.cancel()


async def _agent_of(nexus: Runtime, principal: Principal, ref: str) -> tuple[str, Agent]:
    vm = await nexus.vms.get(ref, principal.project)
    if vm.host_id is None:
        raise InvalidState(f"VM {vm.name!r} has no host yet", suggestion="wait until it has one")
    return vm.id, nexus.agents.of(vm.host_id)
