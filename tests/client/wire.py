"""The wire of a manager over a real socket: canned things, scripted failures, an echo console."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import anyio
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, StreamingResponse

from nexus import httpd
from nexus.api.bulk import BulkAnswer, BulkDone, BulkError, BulkRefused, VmActions
from nexus.api.common import Created, CreatedMany, Item, Page
from nexus.api.errors import (
    Conflict,
    Forbidden,
    HostUnreachable,
    InUse,
    InvalidState,
    NexusError,
    NotFound,
    TimedOut,
    Unauthenticated,
    VmmFault,
)
from nexus.api.hosts import Capacity, Host, HostNetwork
from nexus.api.images import (
    Image,
    ImageBuild,
    ImageBuildCreate,
    ImageCreate,
    ImageUpload,
    ImageUploadComplete,
    ImageUploadCreate,
)
from nexus.api.networks import (
    Network,
    NetworkChange,
    NetworkCreate,
    NetworkError,
    NetworkMember,
    PortForward,
    PortForwardCreate,
)
from nexus.api.vm_snapshots import Snapshot
from nexus.api.vms import LogChunk, Vm, VmCreate, VmError, VmEvent, VmImage, VmNic, VmUpdate
from nexus.api.why import VmWhy
from nexus.ids import new_id
from tests.client.wire_doctor import add_doctor_route
from tests.client.wire_snapshots import add_snapshot_routes
from tests.client.wire_storage import add_quota_routes
from tests.client.wire_templates import add_template_routes
from tests.client.wire_volumes import add_volume_routes

TOKEN = "wire-token"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SHA = "ab" * 32


def make_vm(name: str, **changes: Any) -> Vm:
    image = VmImage(id=new_id(), kind="kernel", name="debian-cloud", sha256=SHA)
    vm = Vm(
        id=new_id(),
        name=name,
        project="default",
        state="running",
        error=None,
        vcpu=1,
        mem_mib=256,
        kernel=image,
        initrd=None,
        rootfs=image.model_copy(update={"kind": "rootfs", "name": "busybox"}),
        kernel_args=None,
        nics=[
            VmNic(iface="eth0", mac="06:00:0a:4d:00:05", ip="10.77.0.5/20", gateway=None, tap="t5")
        ],
        tags={},
        host_id=new_id(),
        engine="qemu",
        socket="/srv/fc/vms/x/root/api.sock",
        pid=42,
        generation=1,
        boot=1,
        created_at=NOW,
        updated_at=NOW,
        started_at=NOW,
    )
    return vm.model_copy(update=changes)


def make_image(kind: str, name: str) -> Image:
    return Image(
        id=new_id(),
        kind=kind,
        name=name,
        project="default",
        sha256=SHA,
        size_bytes=1 << 20,
        source="recipe",
        created_at=NOW,
    )


def make_host() -> Host:
    return Host(
        id=new_id(),
        name="host-one",
        state="healthy",
        engine="qemu",
        engine_reason="no KVM",
        engine_version="7.2",
        network=HostNetwork(bridge="fcbr0", cidr="10.77.0.0/20", gateway="10.77.0.1", dns=[]),
        capacity=Capacity(
            vcpus=2,
            mem_mib=2048,
            mem_available_mib=1024,
            disk_mib=10,
            disk_available_mib=5,
            vms=3,
        ),
        run_dir="/srv/fc",
        agent_version="0",
        last_seen_at=NOW,
        created_at=NOW,
    )


@dataclass
class Wire:
    """What the server holds, what it was asked, and which statuses it is to fail with next."""

    url: str = ""
    vms: list[Vm] = field(default_factory=lambda: [make_vm("web")])
    images: list[Image] = field(default_factory=lambda: [make_image("rootfs", "busybox")])
    host: Host = field(default_factory=make_host)
    build: ImageBuild | None = None
    events: int = 4
    """How many there are; their ids begin with 1."""
    pruned_to: int = 0
    new_state: str = "running"
    """The state of VMs that are made."""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    forwards: list[PortForward] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    upload: ImageUpload | None = None
    uploaded: bytes = b""
    takes: list[int] = field(default_factory=list)
    """How many bytes of each of the next bodies are taken before the connection breaks; none
    at all, and a refusal, below zero."""
    sha256: str | None = None
    keys: list[str | None] = field(default_factory=list)
    """The Idempotency-Key of every POST."""
    changes_between = 0
    """So many VMs change by themselves between a read and the change that follows."""

    def vm(self, ref: str) -> Vm:
        for vm in self.vms:
            if ref in (vm.id, vm.name):
                return vm
        raise NotFound(f"there is no VM {ref!r}", suggestion="nexus ls")

    def asked_for(self, method: str, path: str) -> list[dict[str, str]]:
        return [query for verb, where, query in self.asked if (verb, where) == (method, path)]


def make_app(wire: Wire) -> FastAPI:
    app = FastAPI()
    httpd.install(app)

    @app.middleware("http")
    async def gate(request: Request, go_on: Any) -> Any:
        wire.asked.append((request.method, request.url.path, dict(request.query_params)))
        if request.method == "POST":
            wire.keys.append(request.headers.get("idempotency-key"))
        if wire.failures:
            return JSONResponse({"no": "envelope"}, wire.failures.pop(0))
        return await go_on(request)

    def check(request: Request) -> None:
        given = request.headers.get("authorization")
        if given == "Bearer viewer" and request.method != "GET":
            raise Forbidden("a viewer only reads", suggestion="use an operator's token")
        if given not in (f"Bearer {TOKEN}", "Bearer viewer"):
            raise Unauthenticated("the token is not accepted", suggestion="set NEXUS_TOKEN_FILE")

    add_template_routes(app, wire, check, make_vm)
    _add_vms(app, wire, check)
    _add_uploads(app, wire, check)
    _add_events(app, wire, check)
    _add_rest(app, wire, check)
    return app


def _add_vms(app: FastAPI, wire: Wire, check: Any) -> None:
    # Before the actions on a VM, which have any name.
    add_network_routes(app, wire, check)
    add_snapshot_routes(app, wire, check)
    add_doctor_route(app, wire, check)
    add_volume_routes(app, wire, check)
    add_quota_routes(app, wire, check)

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


def _add_uploads(app: FastAPI, wire: Wire, check: Any) -> None:
    def current(ref: str) -> ImageUpload:
        if wire.upload is None or wire.upload.id != ref:
            raise NotFound(f"there is no upload {ref}")
        return wire.upload.model_copy(update={"offset": len(wire.uploaded)})

    @app.post("/v1/images/uploads", status_code=201)
    async def begin(request: Request, body: ImageUploadCreate) -> Created[ImageUpload]:
        check(request)
        wire.bodies.append(await request.json())
        asked = body.model_dump()
        wire.upload = ImageUpload(
            id=new_id(), project="default", offset=0, created_at=NOW, expires_at=NOW, **asked
        )
        return Created(id=wire.upload.id, item=wire.upload)

    @app.get("/v1/images/uploads")
    async def uploads(request: Request) -> Page[ImageUpload]:
        check(request)
        return Page(items=[wire.upload] if wire.upload else [])

    @app.get("/v1/images/uploads/{ref}")
    async def get(request: Request, ref: str) -> Item[ImageUpload]:
        check(request)
        return Item(item=current(ref))

    @app.patch("/v1/images/uploads/{ref}")
    async def write(request: Request, ref: str) -> Item[ImageUpload]:
        check(request)
        request.state.body_bound.max_bytes = 1 << 40
        if int(request.headers["upload-offset"]) != current(ref).offset:
            raise Conflict("another offset")
        takes = wire.takes.pop(0) if wire.takes else 1 << 60
        if takes < 0:
            raise Forbidden("the token was revoked meanwhile")
        end = len(wire.uploaded) + takes
        async for chunk in request.stream():
            wire.uploaded = (wire.uploaded + chunk)[:end]
            if len(wire.uploaded) == end:
                raise HostUnreachable("the connection breaks")
        return Item(item=current(ref))

    @app.post("/v1/images/uploads/{ref}/complete", status_code=201)
    async def complete(request: Request, ref: str, body: ImageUploadComplete) -> Created[Image]:
        check(request)
        upload = current(ref)
        wire.sha256 = body.sha256
        image = make_image(upload.kind, upload.name)
        wire.images.append(image)
        wire.upload = None
        return Created(id=image.id, item=image)

    @app.delete("/v1/images/uploads/{ref}")
    async def delete(request: Request, ref: str) -> dict[str, bool]:
        check(request)
        current(ref)
        wire.upload = None
        return {"ok": True}


def _add_events(app: FastAPI, wire: Wire, check: Any) -> None:
    def event(number: int) -> VmEvent:
        vm = wire.vms[0]
        return VmEvent(
            id=number,
            vm_id=vm.id,
            vm_name=vm.name,
            at=NOW,
            state="running",
            reason=f"r{number}",
            message="it runs",
            actor="admin",
            request_id=None,
        )

    @app.get("/v1/events", response_model=None)
    async def events(
        request: Request,
        vm: str | None = None,
        after: int | None = None,
        cursor: int | None = None,
        follow: bool = False,
    ) -> Page[VmEvent] | StreamingResponse:
        check(request)
        if vm is not None:
            wire.vm(vm)
        at = cursor or after or 0
        if not follow:
            following = str(at + 1) if at + 1 < wire.events else None
            return Page(items=[event(at + 1)], next_cursor=following)

        async def stream() -> AsyncIterator[bytes]:
            """One event, then the connection ends: readers have to come again."""
            begin = wire.events - 1 if after is None else after
            yield b"retry: 1000\n\n: still here\nid: %d\n\n" % begin
            if 0 < begin < wire.pruned_to:
                gap = f'{{"after": {begin}, "to": {wire.pruned_to}, "reason": "pruned"}}'
                yield f"id: {wire.pruned_to}\nevent: gap\ndata: {gap}\n\n".encode()
            elif begin < wire.events:
                told = event(begin + 1)
                text = f"id: {told.id}\nevent: vm\ndata: {told.model_dump_json()}\n\n".encode()
                yield text[:20]
                yield text[20:]

        return StreamingResponse(stream(), media_type="text/event-stream")


def _add_rest(app: FastAPI, wire: Wire, check: Any) -> None:
    @app.post("/v1/images/builds", status_code=201)
    async def build(request: Request, body: ImageBuildCreate) -> Created[ImageBuild]:
        check(request)
        wire.build = ImageBuild(
            id=new_id(),
            recipe=body.recipe,
            options=body.options(),
            state="queued",
            progress=0,
            step="waiting",
            error=None,
            images=[],
            created_at=NOW,
            updated_at=NOW,
        )
        return Created(id=wire.build.id, item=wire.build)

    @app.get("/v1/images/builds/{ref}")
    async def get_build(request: Request, ref: str) -> Item[ImageBuild]:
        check(request)
        if wire.build is None:
            raise NotFound("no such build")
        state = "running" if wire.build.state == "queued" else "succeeded"
        changes = {"state": state, "step": "copying", "progress": 0.5}
        wire.build = wire.build.model_copy(update=changes)
        return Item(item=wire.build)

    @app.get("/v1/images")
    async def images(request: Request, kind: str | None = None) -> Page[Image]:
        check(request)
        return Page(items=[image for image in wire.images if kind in (None, image.kind)])

    @app.post("/v1/images", status_code=201)
    async def add_image(request: Request, body: ImageCreate) -> Created[Image]:
        check(request)
        image = make_image(body.kind, body.name)
        wire.images.append(image)
        return Created(id=image.id, item=image)

    def find(ref: str) -> Image:
        for image in wire.images:
            if ref in (image.id, image.name):
                return image
        raise NotFound(f"there is no image {ref!r}", suggestion="nexus image ls")

    @app.get("/v1/images/{ref}")
    async def get_image(request: Request, ref: str) -> Item[Image]:
        check(request)
        return Item(item=find(ref))

    @app.delete("/v1/images/{ref}")
    async def delete_image(request: Request, ref: str) -> dict[str, bool]:
        check(request)
        wire.images.remove(find(ref))
        return {"ok": True}

    @app.get("/v1/hosts")
    async def hosts(request: Request) -> Page[Host]:
        check(request)
        return Page(items=[wire.host])

    @app.get("/readyz")
    async def readyz() -> dict[str, bool]:
        return {"ok": True}


def add_network_routes(app: FastAPI, wire: "Wire", check: Callable[[Request], None]) -> None:
    """One network and what leads into it."""

    def network(**changes: Any) -> Network:
        made = Network(
            id=new_id(),
            name="lab",
            project="default",
            kind="isolated",
            state="ready",
            error=None,
            cidr="10.9.0.0/24",
            gateway=None,
            uplink=None,
            isolate_vms=False,
            dns=[],
            bridge="nb0",
            vms=1,
            created_at=NOW,
        )
        return made.model_copy(update=changes)

    @app.get("/v1/networks")
    async def networks(request: Request) -> Page[Network]:
        check(request)
        return Page(items=[network()])

    @app.post("/v1/networks", status_code=201)
    async def create_network(request: Request, body: NetworkCreate) -> Created[Network]:
        check(request)
        wire.bodies.append(body.model_dump(exclude_unset=True))
        made = network(name=body.name)
        if body.uplink:
            error = NetworkError(message="no such interface", suggestion="ip -br link")
            made = network(name=body.name, state="error", error=error)
        return Created(id=made.id, item=made)

    @app.get("/v1/networks/{ref}")
    async def get_network(request: Request, ref: str) -> Item[Network]:
        check(request)
        return Item(item=network(name=ref))

    @app.patch("/v1/networks/{ref}")
    async def change_network(request: Request, ref: str, body: NetworkChange) -> Item[Network]:
        check(request)
        wire.bodies.append(body.model_dump(exclude_unset=True))
        return Item(item=network(name=ref))

    @app.delete("/v1/networks/{ref}")
    async def delete_network(request: Request, ref: str) -> dict[str, bool]:
        check(request)
        if ref == "busy":
            raise InUse("VMs are on it", suggestion="delete them")
        return {"ok": True}

    @app.get("/v1/networks/{ref}/vms")
    async def members(request: Request, ref: str) -> Page[NetworkMember]:
        check(request)
        mac = "02:00:00:00:00:01"
        on_it = NetworkMember(vm_id=new_id(), vm_name="web", iface="eth0", ip="10.9.0.2", mac=mac)
        return Page(items=[on_it])

    @app.post("/v1/vms/{ref}/forwards", status_code=201)
    async def create_forward(
        request: Request, ref: str, body: PortForwardCreate
    ) -> Created[PortForward]:
        check(request)
        made = PortForward(
            id=new_id(),
            vm_id=new_id(),
            host_id=wire.host.id,
            ip="10.9.0.2",
            created_at=NOW,
            **body.model_dump(),
        )
        wire.forwards.append(made)
        return Created(id=made.id, item=made)

    @app.get("/v1/vms/{ref}/forwards")
    async def forwards(request: Request, ref: str) -> Page[PortForward]:
        check(request)
        return Page(items=wire.forwards)

    @app.delete("/v1/vms/{ref}/forwards/{forward_id}")
    async def delete_forward(request: Request, ref: str, forward_id: str) -> dict[str, bool]:
        check(request)
        wire.forwards = [each for each in wire.forwards if each.id != forward_id]
        return {"ok": True}


@contextmanager
def serving() -> Iterator[Wire]:
    """The server on a free port of loopback, in a thread, until the end of the block."""
    wire = Wire()
    listener = httpd.listen("127.0.0.1:0")
    wire.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = httpd.server(make_app(wire), drain_s=1)

    async def serve() -> None:
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    try:
        yield wire
    finally:
        server.should_exit = True
        thread.join()
