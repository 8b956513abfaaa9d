"""An agent without a machine: the agent's HTTP interface over a dictionary, with faults on demand.

It runs in the test's own event loop on a unix socket, so that the manager's real door is used.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import HTTPConnection

from nexus import httpd
from nexus.agent import guest_routes
from nexus.api.doctor import Check, Diagnosis
from nexus.api.errors import Conflict, InUse, NotFound, VmmFault
from nexus.api.hosts import Capacity, HostNetwork, Inventory
from nexus.api.machines import (
    AgentEvent,
    Machine,
    MachineNicStatus,
    MachineStatus,
    VolumeCopyOrder,
)
from nexus.api.networks import (
    HostNetworks,
    HostNetworksStatus,
    HostNetworkStatus,
    NetworkError,
)
from nexus.api.usage import Measured
from nexus.api.vms import VmError
from nexus.ids import new_id
from tests.manager.shelf_double import Shelf


class AgentDouble:
    """Holds machines and says they are as they should be."""

    def __init__(self, socket: Path, *, mem_mib: int = 65536, cidr: str = "10.77.0.0/20") -> None:
        self.socket = socket
        self.url = f"unix:{socket}"
        self.host_id = new_id()
        self.mem_mib = mem_mib
        self.cidr = cidr
        self.machines: dict[str, Machine] = {}
        self.statuses: dict[str, MachineStatus] = {}
        self.puts: list[Machine] = []
        self.boots: dict[str, set[int]] = {}
        """Which boots each machine had: none may happen twice."""
        self.deletes: list[str] = []
        self.copies: list[tuple[str, str]] = []
        """Volumes that were copied: from, to."""
        self.hold: anyio.Event | None = None
        """While set, PUTs wait for it before they do anything."""
        self.faults: list[Callable[[], Response | None]] = []
        self.hold_proxy: anyio.Event | None = None
        """When set, proxied requests wait for it."""
        """Taken one by one: each may answer in place of the next PUT or DELETE."""
        self.lose_answers = 0
        """So many PUTs do their work and then break the connection."""
        self.fails_with: VmError | None = None
        self.fails_only: str | None = None
        """The name of the one VM that ``fails_with`` is about; all when absent."""
        self.refuses: VmError | None = None
        """Why VMMs that run do not take what is wanted of their devices."""
        self.proxied: list[tuple[str, str, str, bytes]] = []
        self.silent = False
        """Whether PUTs change machines without telling it on the stream."""
        self.guest_socket: Path | None = None
        """Where a guest's agent answers for every machine."""
        self.networks: list[HostNetworks] = []
        """What the host was told of networks and forwards, each time."""
        self.network_errors: dict[str, NetworkError] = {}
        """Why networks cannot be, by name."""
        self.shelf = Shelf(self.machines, self.statuses)
        self.use = Measured(vms={}, volumes={}, snapshots={}, images_bytes=0, images_size_bytes=0)
        self._listeners: set[asyncio.Queue[str]] = set()

    def app(self) -> FastAPI:
        app = FastAPI()
        app.put("/agent/v1/vms/{vm_id}")(self._put)
        app.get("/agent/v1/vms/{vm_id}")(self._get)
        app.delete("/agent/v1/vms/{vm_id}")(self._delete)
        app.delete("/agent/v1/volumes/{volume_id}")(self._delete_volume)
        app.put("/agent/v1/volumes/{volume_id}")(self._copy_volume)
        app.get("/agent/v1/vms")(self._list)
        app.get("/agent/v1/inventory")(self._inventory)
        app.get("/agent/v1/capacity")(self._capacity)
        app.get("/agent/v1/usage")(self._usage)
        app.put("/agent/v1/networks")(self._put_networks)
        app.get("/agent/v1/vms/{vm_id}/network-doctor")(self._network_doctor)
        app.get("/agent/v1/events")(self._events)
        app.get("/agent/v1/vms/{vm_id}/logs")(self._logs)
        app.get("/agent/v1/vms/{vm_id}/logs/stream")(self._log_stream)
        app.api_route("/agent/v1/vms/{vm_id}/proxy/{path:path}", methods=["GET", "PUT", "PATCH"])(
            self._proxy
        )
        app.websocket("/agent/v1/vms/{vm_id}/console")(self._console)
        self.shelf.add(app, _Broken)
        guest_routes.add(app, self._guest_socket, self._guest_that_listens)
        httpd.install(app)
        return app

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["AgentDouble"]:
        server = httpd.server(self.app(), drain_s=0)
        server.config.loop = "none"
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        listener = httpd.listen(self.url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: server.serve(sockets=[listener]))
            with anyio.fail_after(20):
                while not server.started:
                    await anyio.lowlevel.checkpoint()
            try:
                yield self
            finally:
                self._say(None)
                server.should_exit = True
                server.force_exit = True

    def push(self, vm_id: str, **changes: Any) -> MachineStatus:
        """Changes a machine on its own, as a guest or a crash would, and tells the manager."""
        status = self.statuses[vm_id].model_copy(
            update={"observed_at": datetime.now(UTC), **changes}
        )
        self.statuses[vm_id] = status
        self._say(AgentEvent(type="status", status=status))
        return status

    def repeat(self, vm_id: str, status: MachineStatus) -> None:
        """Delivers a status again."""
        self._say(AgentEvent(type="status", status=status))

    def hang_up(self) -> None:
        """Ends every event stream."""
        self._say(None)

    def _say(self, event: AgentEvent | None) -> None:
        for queue in self._listeners:
            queue.put_nowait(event.model_dump_json() if event else "")

    async def _put(self, vm_id: str, machine: Machine) -> Response:
        if self.hold is not None:
            await self.hold.wait()
        if self.faults:
            answer = self.faults.pop(0)()
            if answer is not None:
                return answer
        held = self.machines.get(vm_id)
        if held is not None and held.generation > machine.generation:
            raise Conflict(f"generation {machine.generation} is old")
        self.puts.append(machine)
        self.machines[vm_id] = machine
        status = self._converge(machine, self.statuses.get(vm_id))
        self.statuses[vm_id] = status
        if not self.silent:
            self._say(AgentEvent(type="status", status=status))
        if self.lose_answers:
            self.lose_answers -= 1
            return _Broken()
        return Response(status.model_dump_json(), media_type="application/json")

    def _converge(self, machine: Machine, before: MachineStatus | None) -> MachineStatus:
        now = datetime.now(UTC)
        boot = before.boot if before else 0
        started_at = before.started_at if before else None
        state, cause, error = machine.power, None, None
        if machine.power == "stopped":
            state = "configured" if machine.boot == 0 else "stopped"
            cause = None if machine.boot == 0 else "stopped"
        elif self.fails_with is not None and self.fails_only in (None, machine.name):
            state, error = "error", self.fails_with
        elif machine.boot > boot:
            boot, started_at = machine.boot, now
            assert boot not in self.boots.setdefault(machine.id, set()), "a boot happened twice"
            self.boots[machine.id].add(boot)
        elif before is not None and before.state == "stopped":
            state, cause = "stopped", before.exit_cause
        return MachineStatus.model_validate(
            {
                "id": machine.id,
                "generation": machine.generation,
                "state": state,
                "boot": boot,
                "engine": "firecracker",
                "pid": 4242 if state in ("running", "paused") else None,
                "socket": f"/srv/fc/vms/{machine.id}/root/api.sock",
                "nics": [
                    MachineNicStatus(iface=nic.iface, tap=f"tap{index}")
                    for index, nic in enumerate(machine.nics)
                ],
                "configured_at": (before.configured_at if before else None) or now,
                "started_at": started_at,
                "exited_at": now if state == "stopped" else None,
                "exit_cause": cause,
                "error": error,
                "observed_at": now,
                "devices_applied": self.refuses is None,
                "devices_error": self.refuses,
            }
        )

    async def _get(self, vm_id: str) -> Response:
        if vm_id not in self.statuses:
            raise NotFound("no such machine")
        return Response(self.statuses[vm_id].model_dump_json(), media_type="application/json")

    async def _delete(self, vm_id: str) -> Response:
        if self.faults:
            answer = self.faults.pop(0)()
            if answer is not None:
                return answer
        self.deletes.append(vm_id)
        self.machines.pop(vm_id, None)
        self.statuses.pop(vm_id, None)
        self._say(AgentEvent(type="gone", vm_id=vm_id))
        return JSONResponse({"ok": True})

    async def _delete_volume(self, volume_id: str) -> Response:
        if self.faults:
            answer = self.faults.pop(0)()
            if answer is not None:
                return answer
        for machine in self.machines.values():
            assert all(drive.volume != volume_id for drive in machine.drives), "it is in use"
        self.deletes.append(volume_id)
        return JSONResponse({"ok": True})

    async def _copy_volume(self, volume_id: str, order: VolumeCopyOrder) -> Response:
        if self.faults:
            answer = self.faults.pop(0)()
            if answer is not None:
                return answer
        for machine in self.machines.values():
            used = any(drive.volume == order.source for drive in machine.drives)
            if used and self.statuses[machine.id].state in ("running", "paused"):
                raise InUse("a VMM runs with it", suggestion="stop it")
        self.copies.append((order.source, volume_id))
        return JSONResponse({"ok": True})

    async def _list(self) -> Response:
        return JSONResponse(
            {"items": [json.loads(s.model_dump_json()) for s in self.statuses.values()]}
        )

    async def _put_networks(self, wanted: HostNetworks) -> HostNetworksStatus:
        self.networks.append(wanted)
        return HostNetworksStatus(
            networks=[
                HostNetworkStatus(
                    id=spec.id,
                    bridge=f"br-{spec.name}"[:15],
                    error=self.network_errors.get(spec.name),
                )
                for spec in wanted.networks
            ]
        )

    async def _network_doctor(self, vm_id: str) -> Diagnosis:
        if vm_id not in self.machines:
            raise NotFound("this host has no such VM")
        well = Check(step="vm", outcome="ok", message="it runs")
        return Diagnosis(checks=[well], forwards=self.networks[-1].forwards)

    async def _inventory(self) -> Inventory:
        return Inventory(
            host_id=self.host_id,
            hostname="double",
            engine="firecracker",
            engine_reason="a test",
            engine_version="1.12.1",
            network=HostNetwork(
                bridge="fcbr0", cidr=self.cidr, gateway=self.gateway, dns=[self.gateway]
            ),
            networks_in_use=[],
            run_dir="/srv/fc",
            agent_version="0",
        )

    @property
    def gateway(self) -> str:
        return self.cidr.rpartition(".")[0] + ".1"

    async def _usage(self) -> Measured:
        return self.use

    async def _capacity(self) -> Capacity:
        return Capacity(
            vcpus=2,
            mem_mib=self.mem_mib,
            mem_available_mib=self.mem_mib,
            disk_mib=10**6,
            disk_available_mib=10**6,
            vms=len(self.machines),
        )

    async def _events(self) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            queue: asyncio.Queue[str] = asyncio.Queue()
            # Before the statuses are read: what changes while they are sent comes after them.
            self._listeners.add(queue)
            try:
                for status in list(self.statuses.values()):
                    yield AgentEvent(type="status", status=status).model_dump_json() + "\n"
                yield AgentEvent(type="synced").model_dump_json() + "\n"
                while line := await queue.get():
                    yield line + "\n"
            finally:
                self._listeners.discard(queue)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def _logs(self, vm_id: str, source: str, tail: int) -> Response:
        lines = [f"line {number}" for number in range(5)]
        return JSONResponse(
            {"source": source, "lines": lines[-tail:] if tail else [], "offset": 35}
        )

    async def _log_stream(self, vm_id: str, source: str, offset: int) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"more from %d\n" % offset

        return StreamingResponse(chunks(), media_type="text/plain")

    async def _proxy(self, request: Request, vm_id: str, path: str) -> Response:
        if path == "balloon":
            refusal = VmmFault("the VMM refused", fault_message="no balloon")
            refusal.status = 400
            raise refusal
        body = await request.body()
        self.proxied.append((vm_id, request.method, path, body))
        if self.hold_proxy is not None:
            await self.hold_proxy.wait()
        if (request.method, path) == ("PATCH", "vm"):
            states = {"Paused": "paused", "Resumed": "running"}
            self.push(vm_id, state=states[json.loads(body)["state"]])
        return Response(status_code=204) if request.method != "GET" else JSONResponse({"ok": path})

    def _guest_socket(self, connection: HTTPConnection, vm_id: str) -> Path:
        if vm_id not in self.machines:
            raise NotFound("no such machine")
        return self.guest_socket or self.socket.with_name("nobody.sock")

    async def _guest_that_listens(self, connection: HTTPConnection, vm_id: str) -> Path:
        return self._guest_socket(connection, vm_id)

    async def _console(self, socket: WebSocket, vm_id: str) -> None:
        await socket.accept()
        data = await socket.receive_bytes()
        await socket.send_bytes(b"echo " + data)
        await socket.close()


class _Broken(Response):
    """Ends the connection instead of answering."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"100"), (b"connection", b"close")],
            }
        )
        await send({"type": "http.response.body", "body": b"{"})


def refusing(status: int = 503) -> Callable[[], Response]:
    """A fault: an answer that is no envelope, as from a dying agent."""
    return lambda: Response("dying", status_code=status)
