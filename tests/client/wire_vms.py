"""VMs on the wire of tests: made, acted on, told of."""

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, StreamingResponse

from nexus.api.bulk import BulkAnswer, BulkDone, BulkError, BulkRefused, VmActions
from nexus.api.common import Created, CreatedMany, Item, Page
from nexus.api.errors import (
    HostUnreachable,
    InvalidState,
    NexusError,
    TimedOut,
    VmmFault,
)
from nexus.api.vms import LogChunk, Vm, VmCreate, VmError, VmEvent, VmUpdate
from nexus.api.why import VmWhy
from tests.client.things import NOW, TOKEN, make_vm

if TYPE_CHECKING:
    from tests.client.wire import Wire


def add_vm_routes(app: FastAPI, wire: "Wire", check: Callable[[Request], None]) -> None:
    @app.api_route(
        "/v1/vms/{ref}/firecracker/{path:path}", methods=["GET", "PATCH"], response_model=None
    )
    async def firecracker(request: Request, ref: str, path: str) -> Response | dict[str, str]:
        check(request)
        wire.vm(ref)
        if request.method == "GET":
            return {"asked": path}
        wire.bodies.append(await request.json())
        return Response(status_code=204)

    @app.get("/v1/vms")
    async def list_vms(request: Request, cursor: int = 0, limit: int = 2) -> Page[Vm]:
        check(request)
        following = cursor + limit
        more = str(following) if following < len(wire.vms) else None
        return Page(items=wire.vms[cursor:following], next_cursor=more)

    @app.post("/v1/vms", status_code=201)
    async def create(request: Request, body: VmCreate) -> CreatedMany[Vm] | Created[Vm]:
        check(request)
        wire.bodies.append(await request.json())
        vm = make_vm(body.name or "made-up", mem_mib=body.mem_mib, tags=body.tags)
        vm = vm.model_copy(update={"state": wire.new_state})
        if body.name == "broken":
            error = VmError(
                stage="boot", message="no kernel", fault_message="bad ELF", suggestion="nexus logs"
            )
            vm = vm.model_copy(update={"state": "error", "error": error})
        if body.count is not None:
            many = [make_vm(f"{body.name}-{number + 1}") for number in range(body.count)]
            wire.vms += many
            return CreatedMany(id=many[0].id, item=many[0], items=many)
        wire.vms.append(vm)
        return Created(id=vm.id, item=vm)

    def answer_for(ref: str, action: str) -> BulkDone | BulkRefused:
        try:
            vm = act_on(ref, action)
        except NexusError as error:
            problem = BulkError(
                code=error.code,
                message=error.message,
                suggestion=error.suggestion,
                fault_message=error.fault_message,
            )
            return BulkRefused(id=ref, error=problem)
        if action == "delete":
            wire.vms.remove(vm)
        return BulkDone(id=vm.id, name=vm.name)

    @app.post("/v1/vms/actions")
    async def act_on_many(request: Request, body: VmActions) -> BulkAnswer:
        check(request)
        wire.bodies.append(await request.json())
        tags = (body.selector or {}).items()
        refs = body.ids or [vm.name for vm in wire.vms if tags <= vm.tags.items()]
        return BulkAnswer(items=[answer_for(ref, body.action) for ref in refs])

    @app.get("/v1/vms/{ref}")
    async def get(request: Request, ref: str, response: Response) -> Item[Vm]:
        check(request)
        vm = wire.vm(ref)
        response.headers["etag"] = f'"{vm.generation}"'
        return Item(item=vm)

    @app.patch("/v1/vms/{ref}")
    async def update(request: Request, ref: str, body: VmUpdate) -> Item[Vm]:
        check(request)
        wire.bodies.append(await request.json())
        vm = wire.vm(ref)
        if wire.changes_between:
            wire.changes_between -= 1
            changed = {"generation": vm.generation + 1, "tags": {**vm.tags, "theirs": "1"}}
            wire.vms[wire.vms.index(vm)] = vm = vm.model_copy(update=changed)
        if request.headers.get("if-match") not in (None, f'"{vm.generation}"'):
            return JSONResponse(  # type: ignore[return-value]
                {
                    "error": "precondition_failed",
                    "message": "it has changed",
                    "status": 412,
                    "request_id": "r",
                },
                412,
            )
        given = body.model_dump(exclude_unset=True, exclude={"ttl"})
        wire.vms[wire.vms.index(vm)] = vm = vm.model_copy(update=given)
        return Item(item=vm)

    @app.patch("/v1/vms/{ref}/{device:path}")
    async def change_device(request: Request, ref: str, device: str) -> Item[Vm]:
        check(request)
        wire.bodies.append(await request.json())
        if ref == "fault":
            raise VmmFault("the VMM refused", fault_message="not activated yet", suggestion="look")
        return Item(item=wire.vm(ref))

    @app.delete("/v1/vms/{ref}")
    async def delete(request: Request, ref: str) -> dict[str, bool]:
        check(request)
        wire.vms.remove(wire.vm(ref))
        return {"ok": True}

    @app.get("/v1/vms/{ref}/events")
    async def events(request: Request, ref: str, cursor: int = 0) -> Page[VmEvent]:
        check(request)
        event = VmEvent(
            id=cursor + 1,
            vm_id=wire.vm(ref).id,
            vm_name=wire.vm(ref).name,
            at=NOW,
            state="running",
            reason="started" if cursor else "created",
            message="it runs",
            actor="admin",
            request_id=None,
        )
        return Page(items=[event], next_cursor=None if cursor else "1")

    @app.get("/v1/vms/{ref}/why")
    async def why(request: Request, ref: str) -> Item[VmWhy]:
        check(request)
        vm = wire.vm(ref)
        error = VmError(stage="boot", message="no kernel", fault_message="bad ELF", suggestion="x")
        found = VmWhy(
            vm_id=vm.id,
            name=vm.name,
            state="error",
            since=NOW,
            summary=f"{vm.name} could not start",
            reason="failed",
            actor="admin",
            request_id=None,
            error=error,
            log_source="vmm",
            log_tail=["one", "\x1b[31mtwo\x1b[0m"],
            next=[f"nexus logs {vm.name} --source vmm", f"nexus start {vm.name}"],
            events=[],
        )
        return Item(item=found)

    @app.get("/v1/vms/{ref}/logs", response_model=None)
    async def logs(
        request: Request, ref: str, tail: int = 100, follow: bool = False
    ) -> Item[LogChunk] | StreamingResponse:
        check(request)
        wire.vm(ref)
        lines = ["one", "\x1b[31mtwo\x1b[0m", "three"][-tail:]
        if not follow:
            return Item(item=LogChunk(source="console", lines=lines, offset=14))

        async def news() -> AsyncIterator[bytes]:
            for line in (*lines, "four"):
                yield f"{line}\n".encode()

        return StreamingResponse(news(), media_type="text/plain")

    def act_on(ref: str, action: str) -> Vm:
        if ref == "stuck":
            raise TimedOut("it is still stopping", suggestion="nexus stop --force stuck")
        if ref == "fault":
            raise VmmFault("the VMM refused", fault_message="no such drive", suggestion="look")
        if ref == "lost":
            raise HostUnreachable("its host is away")
        vm = wire.vm(ref)
        if action == "pause" and vm.state != "running":
            raise InvalidState(f"{ref} is {vm.state}", suggestion=f"nexus start {ref}")
        return vm

    @app.post("/v1/vms/{ref}/{action}")
    async def act(request: Request, ref: str, action: str) -> dict[str, bool]:
        check(request)
        act_on(ref, action)
        return {"ok": True}

    @app.websocket("/v1/vms/{ref}/console")
    async def console(socket: WebSocket, ref: str) -> None:
        if socket.headers.get("authorization") != f"Bearer {TOKEN}":
            await socket.close(1008)
            return
        await socket.accept()
        await socket.send_bytes(b"hello from the guest\r\n")
        try:
            while True:
                data = await socket.receive_bytes()
                if b"bye" in data:
                    await socket.close(1000)
                    return
                await socket.send_bytes(b"<" + data + b">")
        except WebSocketDisconnect:
            return
