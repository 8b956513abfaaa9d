"""The agent's HTTP surface: requests in, the fleet, answers out."""

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as PathToSocket
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import FastAPI, Path, Query, Request, Response, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.requests import HTTPConnection

from nexus import httpd, metrics
from nexus.agent import (
    archive_routes,
    checkup,
    console,
    events,
    guest_routes,
    logs,
    proxy,
    snapshot_routes,
)
from nexus.agent.events import Feed
from nexus.agent.fleet import Fleet
from nexus.agent.follow import FileWatch, follow
from nexus.agent.inventory import capacity, inventory
from nexus.agent.layout import Layout, is_vm_id
from nexus.agent.settings import Settings
from nexus.agent.tools import Tools
from nexus.agent.usage import measure
from nexus.api.common import Ok, Page, Uuid
from nexus.api.doctor import Diagnosis
from nexus.api.errors import BadRequest, InvalidState, NotFound
from nexus.api.hosts import Capacity, Inventory
from nexus.api.machines import VMM_BODY_BYTES, Machine, MachineStatus, VolumeCopyOrder
from nexus.api.networks import HostNetworks, HostNetworksStatus
from nexus.api.usage import Measured
from nexus.api.vms import LogChunk, LogSource
from nexus.ids import new_id

VmId = Annotated[Uuid, Path()]
PROXY_METHODS = ["GET", "PUT", "PATCH", "POST", "DELETE", "HEAD", "OPTIONS", "TRACE"]
"""All of them come to the proxy's own rules, which say what an endpoint takes."""


def make_app(settings: Settings, tools: Tools, feed: Feed) -> httpd.App:
    """The application; its lifespan takes up the VMs and lets them go."""
    watch = FileWatch()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            anyio.create_task_group() as tasks,
            Fleet.open(Layout(settings.run_dir), tools, feed) as fleet,
        ):
            tasks.start_soon(watch.run)
            app.state.fleet = fleet
            yield
            tasks.cancel_scope.cancel()

    app = FastAPI(title="Nexus agent", lifespan=lifespan, docs_url=None, redoc_url=None)
    httpd.install(app)
    app.add_middleware(metrics.Measured, http=tools.counts.http)
    _add_host_routes(app, settings, tools)
    _add_vm_routes(app, feed)
    _add_log_routes(app, watch)
    _add_proxy(app)
    guest_routes.add(app, _guest_socket, _guest_that_listens)
    snapshot_routes.add(app, _fleet)
    archive_routes.add(app, _fleet)
    if settings.token is not None and not settings.bind.startswith("unix:"):
        return TokenGate(app, settings.token)
    return app


def _fleet(request: HTTPConnection) -> Fleet:
    fleet: Fleet = request.app.state.fleet
    return fleet


def _guest_socket(connection: HTTPConnection, vm_id: str) -> PathToSocket:
    """The way into a guest that runs. Raises NotFound, or InvalidState."""
    machine = _fleet(connection).get(vm_id)
    state = machine.status().state
    if state == "paused":
        raise InvalidState("the VM is paused", suggestion="nexus resume NAME")
    if state != "running":
        raise InvalidState(f"the VM is {state}", suggestion="nexus start NAME")
    return machine.paths.vsock


async def _guest_that_listens(connection: HTTPConnection, vm_id: str) -> PathToSocket:
    path = _guest_socket(connection, vm_id)
    await _fleet(connection).get(vm_id).until_it_listens()
    return path


def _add_host_routes(app: FastAPI, settings: Settings, tools: Tools) -> None:
    @app.get("/agent/v1/health")
    async def health() -> Ok:
        return Ok()

    @app.get("/agent/v1/inventory")
    async def get_inventory() -> Inventory:
        return await inventory(settings, tools)

    @app.put("/agent/v1/networks")
    async def put_networks(wanted: HostNetworks) -> HostNetworksStatus:
        return await tools.network.apply(wanted)

    @app.get("/agent/v1/usage")
    async def get_usage() -> Measured:
        layout = Layout(settings.run_dir)
        return await anyio.to_thread.run_sync(measure, layout, tools.store)

    @app.get("/agent/v1/capacity")
    async def get_capacity(request: Request) -> Capacity:
        return capacity(settings, len(_fleet(request).statuses()))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def get_metrics(request: Request) -> Response:
        states = [status.state for status in _fleet(request).statuses()]
        families = tools.counts.families(states, capacity(settings, len(states)))
        return await metrics.exposition(families)


def _add_vm_routes(app: FastAPI, feed: Feed) -> None:
    @app.get("/agent/v1/vms")
    async def list_vms(request: Request) -> Page[MachineStatus]:
        return Page(items=_fleet(request).statuses())

    @app.get("/agent/v1/vms/{vm_id}")
    async def get_vm(request: Request, vm_id: VmId) -> MachineStatus:
        return _fleet(request).get(vm_id).status()

    @app.put("/agent/v1/vms/{vm_id}")
    async def put_vm(request: Request, vm_id: VmId, machine: Machine) -> MachineStatus:
        if machine.id != vm_id:
            raise BadRequest("the id in the path and the id in the body differ")
        return await _fleet(request).ensure(machine)

    @app.delete("/agent/v1/vms/{vm_id}")
    async def delete_vm(request: Request, vm_id: VmId) -> Ok:
        await _fleet(request).delete(vm_id)
        return Ok()

    @app.get("/agent/v1/vms/{vm_id}/network-doctor")
    async def diagnose(request: Request, vm_id: VmId) -> Diagnosis:
        fleet = _fleet(request)
        return await checkup.examine(fleet.tools.network, fleet.get(vm_id))

    @app.delete("/agent/v1/volumes/{volume_id}")
    async def delete_volume(request: Request, volume_id: Annotated[Uuid, Path()]) -> Ok:
        _fleet(request).delete_volume(volume_id)
        return Ok()

    @app.put("/agent/v1/volumes/{volume_id}")
    async def copy_volume(
        request: Request, volume_id: Annotated[Uuid, Path()], order: VolumeCopyOrder
    ) -> Ok:
        await _fleet(request).copy_volume(order.source, volume_id)
        return Ok()

    @app.get("/agent/v1/events")
    async def get_events(request: Request) -> StreamingResponse:
        stream = events.lines(feed, _fleet(request).statuses)
        return StreamingResponse(stream, media_type="application/x-ndjson")


def _add_log_routes(app: FastAPI, watch: FileWatch) -> None:
    @app.get("/agent/v1/vms/{vm_id}/logs")
    async def get_logs(
        request: Request,
        vm_id: VmId,
        source: LogSource = "console",
        tail: Annotated[int, Query(ge=0, le=logs.MAX_LINES)] = 100,
        offset: Annotated[int | None, Query(ge=0)] = None,
    ) -> LogChunk:
        file = logs.log_file(_fleet(request).get(vm_id).paths, source)
        return logs.read_log(file, source, tail, offset)

    @app.get("/agent/v1/vms/{vm_id}/logs/stream")
    async def stream_logs(
        request: Request,
        vm_id: VmId,
        source: LogSource = "console",
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> StreamingResponse:
        file = logs.log_file(_fleet(request).get(vm_id).paths, source)
        if not file.exists():
            raise NotFound("this VM has no such log yet", suggestion="start the VM first")
        stream = follow(file, offset, watch)
        return StreamingResponse(stream, media_type="application/octet-stream")

    @app.websocket("/agent/v1/vms/{vm_id}/console")
    async def open_console(socket: WebSocket, vm_id: str) -> None:
        try:
            if not is_vm_id(vm_id):
                raise NotFound("not a VM id")
            paths = _fleet(socket).get(vm_id).paths
        except NotFound as error:
            await socket.close(code=4404, reason=error.message[:100])
            return
        if not paths.console_in.exists():
            await socket.close(code=4409, reason="the VM is not prepared yet")
            return
        await socket.accept()
        await console.serve(socket, paths, watch)


def _add_proxy(app: FastAPI) -> None:
    @app.api_route("/agent/v1/vms/{vm_id}/proxy/{path:path}", methods=PROXY_METHODS)
    async def relay(request: Request, vm_id: VmId, path: str) -> Response:
        machine, method, endpoint = _fleet(request).get(vm_id), request.method, f"/{path}"
        query = request.query_params.multi_items()
        proxy.check_address(request.scope["raw_path"], query, machine.paths.socket)
        proxy.check_method(method, endpoint)
        given = await httpd.read_body(request, VMM_BODY_BYTES)
        body = proxy.checked_body(method, endpoint, given)
        power = proxy.power_in(method, endpoint, body)

        async def send() -> tuple[int, bytes]:
            return await proxy.relay(machine.client, method, endpoint, body)

        async def work() -> tuple[int, bytes]:
            return await (machine.given_power(power, send) if power else send())

        status, answer = await httpd.while_connected(request, work)
        media_type = "application/json" if answer else None
        return Response(answer, status_code=status, media_type=media_type)


class TokenGate:
    """Refuses every HTTP request and WebSocket without the agent's bearer token."""

    def __init__(self, app: httpd.App, token: str) -> None:
        self._app = app
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: httpd.Scope, receive: httpd.Receive, send: httpd.Send) -> None:
        if scope["type"] == "lifespan" or self._admits(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4401, "reason": "unauthenticated"})
        else:
            response = httpd.envelope(
                new_id(),
                401,
                "unauthenticated",
                "the agent wants its bearer token",
                suggestion="send Authorization: Bearer with the content of NEXUS_AGENT_TOKEN_FILE",
            )
            response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)

    def _admits(self, scope: httpd.Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._wanted)
