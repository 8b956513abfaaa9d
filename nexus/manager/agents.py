"""The only door to agents: HTTP over a unix socket or TCP, typed answers, typed failures."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import TypeVar

import anyio
import httpcore
from pydantic import TypeAdapter, ValidationError
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import InvalidHandshake

from nexus.api.common import Page, Wire
from nexus.api.doctor import Diagnosis
from nexus.api.errors import ErrorBody, HostUnreachable, MethodNotAllowed, NexusError, NotFound
from nexus.api.guest import GuestEntry, GuestFile, GuestInfo, Written
from nexus.api.hosts import Capacity, Inventory
from nexus.api.machines import AgentEvent, Machine, MachineStatus, VolumeCopyOrder
from nexus.api.networks import HostNetworks, HostNetworksStatus
from nexus.api.snapshots import HostSnapshot, SnapshotOrder
from nexus.api.usage import Measured
from nexus.api.vms import LogChunk, LogSource
from nexus.manager.agent_http import FAILURES, AgentHttp, Answer, lines, unreachable

ANSWER_TIMEOUT_S = 45.0
"""A PUT or DELETE answers within 30 s."""
CAPTURE_TIMEOUT_S = 900.0
"""A snapshot writes a VM's memory, copies its disks and hashes both."""
COPY_TIMEOUT_S = 600.0
"""A volume is copied block by block where the host's file system cannot share blocks."""
LOOK_TIMEOUT_S = 5.0
"""For questions that need no work: inventory, health, capacity."""
STALL_TIMEOUT_S = 90.0
"""How long a file's transfer may stand still; the agent itself gives up after 60 s."""
CLOSE_TIMEOUT_S = 2.0
"""How long the agent may take to answer that a WebSocket is closed."""
SILENCE_S = 60.0
"""The event stream has pings; this long without any means that the host is gone."""

_Answer = TypeVar("_Answer", bound=Wire)
_statuses: TypeAdapter[list[MachineStatus]] = TypeAdapter(list[MachineStatus])


class AgentRefused(NexusError):
    """The agent answered with an error; code, status and words are the agent's."""

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(body.message, suggestion=body.suggestion, fault_message=body.fault_message)
        self.code = body.error
        self.status = body.status


class Agent:
    """One host's agent."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._http = AgentHttp(url, self._headers)

    async def put_vm(self, machine: Machine) -> MachineStatus:
        """Has the agent ensure a machine; answers once it has converged, or after some 30 s."""
        answer = await self._ask(
            "PUT",
            f"/agent/v1/vms/{machine.id}",
            content=machine.model_dump_json().encode(),
            headers={"content-type": "application/json"},
        )
        return self._read(MachineStatus, answer)

    async def get_vm(self, vm_id: str) -> MachineStatus:
        """What the agent sees of one machine. Raises NexusError 404 when it holds none."""
        return self._read(MachineStatus, await self._ask("GET", f"/agent/v1/vms/{vm_id}"))

    async def delete_vm(self, vm_id: str) -> None:
        """Removes a machine and all that belongs to it; answers when everything is gone."""
        await self._ask("DELETE", f"/agent/v1/vms/{vm_id}")

    async def delete_volume(self, volume_id: str) -> None:
        """Removes a volume's file, if there is one. Raises NexusError 409 while a VM has it."""
        await self._ask("DELETE", f"/agent/v1/volumes/{volume_id}")

    async def put_snapshot(self, order: SnapshotOrder) -> HostSnapshot:
        """Has the agent take a snapshot, or tell of it if it has it; answers when it is whole."""
        answer = await self._ask(
            "PUT",
            f"/agent/v1/snapshots/{order.id}",
            content=order.model_dump_json().encode(),
            headers={"content-type": "application/json"},
            timeout_s=CAPTURE_TIMEOUT_S,
        )
        return self._read(HostSnapshot, answer)

    async def get_snapshot(self, snapshot_id: str) -> HostSnapshot:
        """Raises NexusError 404 when the agent holds none."""
        path = f"/agent/v1/snapshots/{snapshot_id}"
        return self._read(HostSnapshot, await self._ask("GET", path))

    @contextlib.asynccontextmanager
    async def get_archive(
        self, snapshot_id: str
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """A snapshot's archive: its size, and its content as it comes."""
        async with self._stream(
            f"/agent/v1/snapshots/{snapshot_id}/archive", params={}, silence_s=CAPTURE_TIMEOUT_S
        ) as answer:
            sizes = [value for name, value in answer.headers if name.lower() == b"content-length"]
            yield int(sizes[0]), self._chunks(answer)

    async def put_archive(self, snapshot_id: str, content: AsyncIterator[bytes]) -> HostSnapshot:
        """Sends an archive as it comes; what ``content`` raises is passed on."""
        answer = await self._ask(
            "PUT",
            f"/agent/v1/snapshots/{snapshot_id}/archive",
            content=content,
            headers={"content-type": "application/octet-stream"},
            timeout_s=CAPTURE_TIMEOUT_S,
        )
        return self._read(HostSnapshot, answer)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Removes a snapshot's files. Raises NexusError 409 while a diff on top needs them."""
        await self._ask("DELETE", f"/agent/v1/snapshots/{snapshot_id}")

    async def copy_volume(self, source_id: str, copy_id: str) -> None:
        """Makes a volume that begins as another one is; answers when it is whole.

        Raises NexusError: 409 while a VMM has the other one, or when there is no room.
        """
        await self._ask(
            "PUT",
            f"/agent/v1/volumes/{copy_id}",
            content=VolumeCopyOrder(source=source_id).model_dump_json().encode(),
            headers={"content-type": "application/json"},
            timeout_s=COPY_TIMEOUT_S,
        )

    async def list_vms(self) -> list[MachineStatus]:
        """Every machine the agent holds."""
        answer = await self._ask("GET", "/agent/v1/vms")
        try:
            return _statuses.validate_python(json.loads(answer.content)["items"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._nonsense(error) from error

    async def inventory(self) -> Inventory:
        return self._read(Inventory, await self._look("inventory"))

    async def capacity(self) -> Capacity:
        return self._read(Capacity, await self._look("capacity"))

    async def usage(self) -> Measured:
        """What things take on the host's disks; it looks at every file for that."""
        return self._read(Measured, await self._ask("GET", "/agent/v1/usage"))

    async def health(self) -> None:
        """Raises when the agent is not well."""
        await self._look("health")

    async def put_networks(self, wanted: HostNetworks) -> HostNetworksStatus:
        """Has the agent ensure all networks and forwards of its host; a status for each network."""
        answer = await self._ask(
            "PUT",
            "/agent/v1/networks",
            content=wanted.model_dump_json().encode(),
            headers={"content-type": "application/json"},
        )
        return self._read(HostNetworksStatus, answer)

    async def network_doctor(self, vm_id: str) -> Diagnosis:
        """What stands between a VM and its networks."""
        answer = await self._ask("GET", f"/agent/v1/vms/{vm_id}/network-doctor")
        return self._read(Diagnosis, answer)

    async def logs(self, vm_id: str, source: LogSource, *, tail: int) -> LogChunk:
        """The last ``tail`` lines of a log."""
        answer = await self._ask(
            "GET", f"/agent/v1/vms/{vm_id}/logs", params={"source": source, "tail": str(tail)}
        )
        return self._read(LogChunk, answer)

    @contextlib.asynccontextmanager
    async def follow_logs(
        self, vm_id: str, source: LogSource, *, offset: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A log's bytes from ``offset`` on, as they are written."""
        async with self._stream(
            f"/agent/v1/vms/{vm_id}/logs/stream",
            params={"source": source, "offset": str(offset)},
            silence_s=None,
        ) as answer:
            yield self._chunks(answer)

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[AgentEvent]]:
        """The agent's stream: every machine's status, ``synced``, then every change."""
        async with self._stream("/agent/v1/events", params={}, silence_s=SILENCE_S) as answer:
            yield self._events(answer)

    @contextlib.asynccontextmanager
    async def console(self, vm_id: str) -> AsyncIterator[ClientConnection]:
        """A WebSocket to a VM's serial console, binary both ways."""
        refusal = NotFound("the agent gives no console for this VM", suggestion="nexus start NAME")
        async with self._websocket(f"/agent/v1/vms/{vm_id}/console", refusal) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def exec(self, vm_id: str) -> AsyncIterator[ClientConnection]:
        """A WebSocket for one program in a VM's guest, as docs/exec.md describes it."""
        refusal = HostUnreachable(
            f"the agent at {self.url} runs no programs in guests",
            suggestion="bring manager and agent to the same version",
        )
        async with self._websocket(f"/agent/v1/vms/{vm_id}/exec", refusal) as connection:
            yield connection

    async def guest(self, vm_id: str) -> GuestInfo:
        """What the agent inside a VM says. Raises NexusError when none answers."""
        return self._read(GuestInfo, await self._ask("GET", f"/agent/v1/vms/{vm_id}/guest"))

    async def stat_file(self, vm_id: str, path: str) -> GuestFile:
        answer = await self._ask("GET", f"/agent/v1/vms/{vm_id}/files/stat", params={"path": path})
        return self._read(GuestFile, answer)

    async def list_files(self, vm_id: str, path: str) -> list[GuestEntry]:
        answer = await self._ask("GET", f"/agent/v1/vms/{vm_id}/files/list", params={"path": path})
        return self._read(Page[GuestEntry], answer).items

    async def make_directory(self, vm_id: str, path: str, mode: str) -> None:
        await self._ask(
            "POST", f"/agent/v1/vms/{vm_id}/files/mkdir", params={"path": path, "mode": mode}
        )

    async def put_file(
        self, vm_id: str, path: str, mode: str, content: AsyncIterator[bytes]
    ) -> Written:
        """Sends a file into a guest as it comes; what ``content`` raises is passed on."""
        answer = await self._ask(
            "PUT",
            f"/agent/v1/vms/{vm_id}/files",
            content=content,
            headers={"content-type": "application/octet-stream"},
            params={"path": path, "mode": mode},
            timeout_s=STALL_TIMEOUT_S,
        )
        return self._read(Written, answer)

    @contextlib.asynccontextmanager
    async def get_file(
        self, vm_id: str, path: str
    ) -> AsyncIterator[tuple[dict[str, str], AsyncIterator[bytes]]]:
        """A guest's file: the headers that tell of it, and its content as it comes."""
        async with self._stream(
            f"/agent/v1/vms/{vm_id}/files", params={"path": path}, silence_s=STALL_TIMEOUT_S
        ) as answer:
            headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in answer.headers
                if name.lower().startswith(b"x-nexus-")
            }
            yield headers, self._chunks(answer)

    async def proxy(
        self, vm_id: str, method: str, path: str, body: bytes, content_type: str | None
    ) -> Answer:
        """Relays a request to the VM's own API; a refusal has the VMM's fault message.

        ``path`` must be plain segments: this does not escape it.
        """
        headers = {"content-type": content_type} if content_type else {}
        return await self._ask(
            method, f"/agent/v1/vms/{vm_id}/proxy/{path}", content=body, headers=headers
        )

    async def reconnect(self) -> None:
        """Drops every kept-alive connection; calls under way fail as if the host were away."""
        old, self._http = self._http, AgentHttp(self.url, self._headers)
        await old.close()

    async def close(self) -> None:
        await self._http.close()

    async def _look(self, what: str) -> Answer:
        return await self._ask("GET", f"/agent/v1/{what}", timeout_s=LOOK_TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def _websocket(self, path: str, refusal: NexusError) -> AsyncIterator[ClientConnection]:
        """Raises ``refusal`` when the agent answers with anything but a WebSocket."""
        try:
            if self._socket:
                opening = unix_connect(
                    self._socket,
                    uri=f"ws://agent{path}",
                    open_timeout=LOOK_TIMEOUT_S,
                    ping_timeout=None,
                    compression=None,
                )
            else:
                opening = connect(
                    "ws" + self.url.removeprefix("http") + path,
                    open_timeout=LOOK_TIMEOUT_S,
                    additional_headers=self._headers,
                    proxy=None,
                    # An agent that waits for a slow guest does not read pongs either.
                    ping_timeout=None,
                    compression=None,
                )
            connection = await opening
        except InvalidHandshake as error:
            raise refusal from error
        except (OSError, TimeoutError) as error:
            raise unreachable(self.url, error) from error
        try:
            yield connection
        finally:
            # Also when cancelled: nothing else would end what the agent does for it.
            with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_TIMEOUT_S):
                await connection.close()
            connection.transport.abort()

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Answer:
        try:
            answer = await self._http.ask(
                method, path, content=content, headers=headers, params=params, timeout_s=timeout_s
            )
        except FAILURES as error:
            raise unreachable(self.url, error) from error
        if not answer.is_success:
            raise self._refusal(answer)
        return answer

    @contextlib.asynccontextmanager
    async def _stream(
        self, path: str, *, params: dict[str, str], silence_s: float | None
    ) -> AsyncIterator[httpcore.Response]:
        """An answer that goes on. What breaks it while it is read is HostUnreachable as well."""
        try:
            async with self._http.stream(
                "GET", path, params=params, silence_s=silence_s
            ) as response:
                if not 200 <= response.status < 300:
                    raise self._refusal(Answer(response.status, await response.aread()))
                yield response
        except FAILURES as error:
            raise unreachable(self.url, error) from error

    async def _events(self, response: httpcore.Response) -> AsyncIterator[AgentEvent]:
        try:
            async for line in lines(response):
                yield AgentEvent.model_validate_json(line)
        except FAILURES as error:
            raise unreachable(self.url, error) from error
        except ValidationError as error:
            raise self._nonsense(error) from error

    async def _chunks(self, response: httpcore.Response) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.aiter_stream():
                yield chunk
        except FAILURES as error:
            raise unreachable(self.url, error) from error

    def _read(self, kind: type[_Answer], answer: Answer) -> _Answer:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise self._nonsense(error) from error

    def _refusal(self, answer: Answer) -> NexusError:
        try:
            body = ErrorBody.model_validate_json(answer.content)
            if body.status == 405:
                allow = answer.headers.get("allow", "").split(", ")
                return MethodNotAllowed(body.message, allow=allow, suggestion=body.suggestion)
            return AgentRefused(body)
        except ValidationError as error:
            return self._nonsense(error)

    def _nonsense(self, error: Exception) -> HostUnreachable:
        return HostUnreachable(
            f"the agent at {self.url} gives an answer that is not understood: {str(error)[:300]}",
            suggestion="bring manager and agent to the same version",
        )


class Agents:
    """The agents of all hosts that this manager knows."""

    def __init__(self, token: str | None = None) -> None:
        self._token = token
        self._by_url: dict[str, Agent] = {}
        self._urls: dict[str, str] = {}

    def at(self, url: str) -> Agent:
        """The agent at an address; one client with kept-alive connections for each."""
        if url not in self._by_url:
            self._by_url[url] = Agent(url, self._token)
        return self._by_url[url]

    def learn(self, host_id: str, url: str) -> None:
        """Notes where a host's agent answers."""
        self._urls[host_id] = url

    def of(self, host_id: str) -> Agent:
        """A host's agent. Raises HostUnreachable for a host nobody has heard of yet."""
        url = self._urls.get(host_id)
        if url is None:
            raise HostUnreachable(
                f"where the agent of host {host_id} answers is not known yet",
                suggestion="see whether it runs: nexus host ls",
            )
        return self.at(url)

    async def close(self) -> None:
        for agent in self._by_url.values():
            await agent.close()
