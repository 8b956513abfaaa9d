"""The wire of a manager over a real socket: canned things, scripted failures, an echo console."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from nexus import httpd
from nexus.api.errors import Forbidden, NotFound, Unauthenticated
from nexus.api.hosts import Host
from nexus.api.images import Image, ImageBuild, ImageUpload
from nexus.api.networks import PortForward
from nexus.api.vm_snapshots import Snapshot
from nexus.api.vms import Vm
from tests.client.things import NOW, TOKEN, make_host, make_image, make_vm
from tests.client.wire_doctor import add_doctor_route
from tests.client.wire_events import add_event_routes
from tests.client.wire_images import add_image_routes
from tests.client.wire_networks import add_network_routes
from tests.client.wire_snapshots import add_snapshot_routes
from tests.client.wire_storage import add_quota_routes
from tests.client.wire_templates import add_template_routes
from tests.client.wire_uploads import add_upload_routes
from tests.client.wire_vms import add_vm_routes
from tests.client.wire_volumes import add_volume_routes

__all__ = ["NOW", "TOKEN", "Wire", "make_app", "make_image", "make_vm", "serving"]


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
    # Before the actions on a VM, which have any name.
    add_network_routes(app, wire, check)
    add_snapshot_routes(app, wire, check)
    add_doctor_route(app, wire, check)
    add_volume_routes(app, wire, check)
    add_quota_routes(app, wire, check)
    add_vm_routes(app, wire, check)
    add_upload_routes(app, wire, check)
    add_event_routes(app, wire, check)
    add_image_routes(app, wire, check)
    return app


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
