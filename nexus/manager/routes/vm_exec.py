"""``/v1/vms/{id}/exec``: a program in a guest, as one request or as a stream; see docs/exec.md."""

from collections.abc import Awaitable
from typing import Annotated, TypeVar

import anyio
from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect

from nexus import streams
from nexus.api.common import Item
from nexus.api.errors import ClientLeft, NexusError, TimedOut
from nexus.api.guest import ExecRequest, ExecResult, GuestInfo
from nexus.manager.exec_relay import collect, relay
from nexus.manager.routes.parts import VmRef
from nexus.manager.runtime import Nexus, Runtime, caller_of
from nexus.manager.security import Principal, require
from nexus.manager.services.guests import told
from nexus.manager.uow import Caller

router = APIRouter(prefix="/v1/vms", tags=["guests"])

Reader = Annotated[Principal, require("vms:read")]
Operator = Annotated[Principal, require("vms:exec")]

T = TypeVar("T")


@router.get("/{ref}/guest")
async def guest(ref: VmRef, nexus: Nexus, principal: Reader) -> Item[GuestInfo]:
    """What the agent inside the guest says of it: health and addresses."""
    visit = await nexus.guests.look(ref, principal.project)
    return Item(item=await visit.agent.guest(visit.vm_id))


@router.post("/{ref}/exec")
async def run(
    ref: VmRef, request: Request, body: ExecRequest, nexus: Nexus, principal: Operator
) -> Item[ExecResult]:
    """Runs a program to its end. Going away before ends the program."""
    caller = caller_of(request, principal, "vms:exec")
    return Item(item=await _while_asked(request, _run(nexus, ref, caller, body)))


async def _run(nexus: Runtime, ref: str, caller: Caller, body: ExecRequest) -> ExecResult:
    async with nexus.guests.visit(ref, caller, "vm.exec", told(body), once=True) as visit:
        try:
            with anyio.fail_after(body.timeout_s):
                async with visit.agent.exec(visit.vm_id) as guest:
                    result = await collect(guest, body)
        except TimeoutError as error:
            raise TimedOut(
                f"{body.argv[0][:100]} was ended after {body.timeout_s:g} s",
                suggestion="give it more time with timeout_s, or use the stream",
            ) from error
        visit.outcome["exit_code"] = result.exit_code
        return result


@router.websocket("/{ref}/exec")
async def stream(socket: WebSocket, ref: VmRef, nexus: Nexus, principal: Operator) -> None:
    """Runs a program with streams both ways. Leaving ends the program."""
    await socket.accept()
    try:
        start = await streams.read_start(socket)
        caller = caller_of(socket, principal, "vms:exec")
        async with nexus.guests.visit(
            ref, caller, "vm.exec", {**told(start), "tty": start.tty}
        ) as visit:
            async with visit.agent.exec(visit.vm_id) as guest:
                await guest.send(start.model_dump_json())
                ended = await relay(socket, guest)
            if isinstance(ended, NexusError):
                raise ended
            if ended is None:
                raise ClientLeft("the caller left before the program's end")
            visit.outcome["exit_code"] = ended.exit_code
        await streams.end(socket, ended)
    except ClientLeft:
        return
    except NexusError as error:
        await streams.end(socket, error)
    except WebSocketDisconnect:
        return


async def _while_asked(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away. Raises ClientLeft."""
    result: list[T] = []
    failure: list[NexusError] = []
    async with anyio.create_task_group() as tasks:

        async def do() -> None:
            try:
                result.append(await work)
            except NexusError as error:
                failure.append(error)
            tasks.cancel_scope.cancel()

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        tasks.start_soon(do)
    if failure:
        raise failure[0]
    if not result:
        raise ClientLeft("the caller left before the program's end")
    return result[0]
