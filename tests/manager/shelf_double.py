"""The snapshots of the agent double: what the agent's routes promise, over a dictionary."""

from collections.abc import Callable
from datetime import UTC, datetime

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import Response

from nexus.api.archives import END, META, ArchiveReader, entry
from nexus.api.common import Ok, Page
from nexus.api.errors import InvalidState, NotFound
from nexus.api.machines import Machine, MachineStatus
from nexus.api.snapshots import HostSnapshot, SnapshotFile, SnapshotOrder

MEM = 1 << 20
DISK = 1 << 16


class Shelf:
    """Snapshots of machines that are only said to run."""

    def __init__(self, machines: dict[str, Machine], statuses: dict[str, MachineStatus]) -> None:
        self.machines = machines
        self.statuses = statuses
        self.held: dict[str, HostSnapshot] = {}
        self.captures: list[str] = []
        """The ids of those that were really taken, in their order."""
        self.hold: anyio.Event | None = None
        """While set, captures wait for it before they do anything."""
        self.begun = anyio.Event()
        """Set when a capture has come in."""
        self.faults: list[Callable[[], Response | None]] = []
        """Taken one by one: each may answer in place of the next PUT or DELETE."""
        self.making: dict[str, anyio.Event] = {}
        """Those that are being taken in: a deletion waits for their end, as an agent's does."""
        self.lose_answers = 0
        """So many PUTs do their work and then break the connection."""

    def add(self, app: FastAPI, broken: Callable[[], Response]) -> None:
        self._broken = broken
        app.put("/agent/v1/snapshots/{snapshot_id}", response_model=None)(self._put)
        app.get("/agent/v1/snapshots/{snapshot_id}")(self._get)
        app.get("/agent/v1/snapshots")(self._list)
        app.delete("/agent/v1/snapshots/{snapshot_id}", response_model=None)(self._delete)
        app.get("/agent/v1/snapshots/{snapshot_id}/archive")(self._send)
        app.put("/agent/v1/snapshots/{snapshot_id}/archive", response_model=None)(self._take_in)

    async def _put(self, snapshot_id: str, order: SnapshotOrder) -> HostSnapshot | Response:
        self.begun.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.faults and (answer := self.faults.pop(0)()) is not None:
            return answer
        if snapshot_id not in self.held:
            self.held[snapshot_id] = self._capture(order)
            self.captures.append(snapshot_id)
        if self.lose_answers:
            self.lose_answers -= 1
            return self._broken()
        return self.held[snapshot_id]

    def _capture(self, order: SnapshotOrder) -> HostSnapshot:
        machine, status = self.machines.get(order.vm_id), self.statuses.get(order.vm_id)
        if machine is None or status is None:
            raise NotFound("no such machine")
        if status.state not in ("running", "paused"):
            raise InvalidState(f"it is {status.state}")
        if order.parent_id is not None and order.parent_id not in self.held:
            raise NotFound("no such parent")
        return HostSnapshot(
            id=order.id,
            vm_id=order.vm_id,
            kind=order.kind,
            parent_id=order.parent_id,
            needs_parent=order.parent_id is not None,
            engine="firecracker",
            vmm_version="1.12.1",
            cpu_template=None,
            cpu="a processor",
            vcpu=machine.vcpu,
            mem_mib=machine.mem_mib,
            files=[
                SnapshotFile(name="mem", size_bytes=MEM, disk_bytes=MEM, sha256="a" * 64),
                SnapshotFile(name="rootfs.ext4", size_bytes=DISK, disk_bytes=DISK, sha256="b" * 64),
            ],
            size_bytes=MEM + DISK,
            disk_bytes=MEM + DISK,
            pause_ms=12.5,
            taken_at=datetime.now(UTC),
            machine=machine,
        )

    def merge(self, snapshot_id: str) -> None:
        """What a host does in the background: the diff no longer needs its parent."""
        self.held[snapshot_id] = self.held[snapshot_id].model_copy(update={"needs_parent": False})

    async def _get(self, snapshot_id: str) -> HostSnapshot:
        if snapshot_id not in self.held:
            raise NotFound("no such snapshot")
        return self.held[snapshot_id]

    async def _list(self) -> Page[HostSnapshot]:
        return Page(items=[*self.held.values()])

    async def _delete(self, snapshot_id: str) -> Ok | Response:
        if self.faults and (answer := self.faults.pop(0)()) is not None:
            return answer
        if snapshot_id in self.making:
            await self.making[snapshot_id].wait()
        for held in [*self.held.values()]:
            if held.parent_id == snapshot_id and held.needs_parent:
                self.merge(held.id)
        self.held.pop(snapshot_id, None)
        return Ok()

    async def _send(self, snapshot_id: str) -> Response:
        meta = entry(META, self.held[snapshot_id].model_dump_json().encode())
        return Response(meta + END, media_type="application/octet-stream")

    async def _take_in(self, snapshot_id: str, request: Request) -> HostSnapshot | Response:
        self.making[snapshot_id] = anyio.Event()
        self.begun.set()
        try:
            reader = ArchiveReader(request.stream())
            meta = HostSnapshot.model_validate_json(await reader.text(META))
            await reader.end()
            if self.hold is not None:
                await self.hold.wait()
            if self.faults and (answer := self.faults.pop(0)()) is not None:
                return answer
            self.held[snapshot_id] = meta.model_copy(update={"id": snapshot_id})
            return self.held[snapshot_id]
        finally:
            self.making.pop(snapshot_id).set()
