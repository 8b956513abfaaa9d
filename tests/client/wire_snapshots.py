"""The part of the wire double that tells of snapshots."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response

from nexus.api.common import Created, CreatedMany, Item, Ok, Page
from nexus.api.errors import InUse, NotFound
from nexus.api.vm_snapshots import (
    Snapshot,
    SnapshotClone,
    SnapshotContent,
    SnapshotCreate,
    SnapshotError,
    SnapshotSchedule,
    SnapshotScheduleSet,
    SnapshotUpdate,
    VmRestore,
)
from nexus.api.vms import Vm, VmOrigin
from nexus.ids import new_id

if TYPE_CHECKING:
    from tests.client.wire import Wire

ARCHIVE = b"an archive" * 1000


def make_snapshot(vm: Vm, name: str, **changes: Any) -> Snapshot:
    snapshot = Snapshot(
        id=new_id(),
        name=name,
        project="default",
        state="ready",
        error=None,
        vm_id=vm.id,
        vm_name=vm.name,
        host_id=vm.host_id or new_id(),
        engine="firecracker",
        kind="full",
        parent_id=None,
        needs_parent=False,
        scheduled=False,
        vcpu=1,
        mem_mib=128,
        kernel=vm.kernel,
        rootfs=vm.rootfs,
        vmm_version="1.12.1",
        cpu_template=None,
        cpu="a processor",
        files=[
            SnapshotContent(name="mem", size_bytes=1 << 27, disk_bytes=1 << 20, sha256="a" * 64)
        ],
        size_bytes=1 << 27,
        disk_bytes=1 << 20,
        pause_ms=12.5,
        taken_at=vm.created_at,
        created_at=vm.created_at,
        updated_at=vm.created_at,
    )
    return snapshot.model_copy(update=changes)


def add_snapshot_routes(app: FastAPI, wire: "Wire", check: Callable[[Request], None]) -> None:
    """Before the actions on a VM, which have any name."""

    def find(ref: str) -> Snapshot:
        for one in wire.snapshots:
            if ref in (one.id, one.name):
                return one
        raise NotFound(f"there is no snapshot {ref!r}", suggestion="nexus snapshot ls")

    @app.post("/v1/vms/{ref}/snapshots", status_code=201)
    async def create(request: Request, ref: str, body: SnapshotCreate) -> Created[Snapshot]:
        check(request)
        wire.bodies.append(await request.json())
        made = make_snapshot(wire.vm(ref), body.name or f"{ref}-1", kind=body.kind)
        if body.name == "broken":
            error = SnapshotError(
                stage="capture", message="no room", fault_message="ENOSPC", suggestion="df -h"
            )
            made = made.model_copy(update={"state": "error", "error": error, "pause_ms": None})
        wire.snapshots.append(made)
        return Created(id=made.id, item=made)

    @app.get("/v1/snapshots")
    async def list_all(request: Request, cursor: int = 0, limit: int = 2) -> Page[Snapshot]:
        check(request)
        following = cursor + limit
        more = str(following) if following < len(wire.snapshots) else None
        return Page(items=wire.snapshots[cursor:following], next_cursor=more)

    @app.post("/v1/snapshots/import", status_code=201)
    async def take_in(request: Request, name: str | None = None) -> Created[Snapshot]:
        check(request)
        assert request.headers["content-type"] == "application/octet-stream"
        wire.uploaded = await request.body()
        made = make_snapshot(wire.vms[0], name or "imported", vm_id=None)
        wire.snapshots.append(made)
        return Created(id=made.id, item=made)

    @app.get("/v1/snapshots/{ref}/export")
    async def export(request: Request, ref: str) -> Response:
        check(request)
        size = str(len(ARCHIVE))
        headers = {"x-nexus-file-size": size}
        if find(ref).name == "short":
            headers["content-length"] = str(len(ARCHIVE) + 1)
        return Response(ARCHIVE, media_type="application/octet-stream", headers=headers)

    @app.get("/v1/snapshots/{ref}")
    async def get(request: Request, ref: str) -> Item[Snapshot]:
        check(request)
        return Item(item=find(ref))

    @app.patch("/v1/snapshots/{ref}")
    async def rename(request: Request, ref: str, body: SnapshotUpdate) -> Item[Snapshot]:
        check(request)
        renamed = find(ref).model_copy(update={"name": body.name})
        wire.snapshots[wire.snapshots.index(find(ref))] = renamed
        return Item(item=renamed)

    @app.delete("/v1/snapshots/{ref}")
    async def delete(request: Request, ref: str) -> Ok:
        check(request)
        if ref == "parent":
            raise InUse("the snapshot 'parent' is needed by the diff child", suggestion="wait")
        wire.snapshots.remove(find(ref))
        return Ok()

    @app.post("/v1/snapshots/{ref}/instantiate", status_code=201)
    async def instantiate(
        request: Request, ref: str, body: SnapshotClone
    ) -> CreatedMany[Vm] | Created[Vm]:
        check(request)
        wire.bodies.append(await request.json())
        of, source = find(ref), wire.vms[0]
        origin = VmOrigin(snapshot=of.id, name=of.name, boot=1)
        state = "running" if body.start else "paused"

        def made(name: str) -> Vm:
            changes = {"id": new_id(), "name": name, "origin": origin, "state": state}
            return source.model_copy(update=changes)

        if body.count is None:
            vms = [made(body.name or "made-up")]
        else:
            vms = [made(f"{body.name}-{number + 1}") for number in range(body.count)]
        wire.vms += vms
        if body.count is None:
            return Created(id=vms[0].id, item=vms[0])
        return CreatedMany(id=vms[0].id, item=vms[0], items=vms)

    schedules: dict[str, SnapshotSchedule] = {}

    @app.put("/v1/vms/{ref}/snapshot-schedule")
    async def put(request: Request, ref: str, body: SnapshotScheduleSet) -> Item[SnapshotSchedule]:
        check(request)
        at, vm = wire.vm(ref).created_at, wire.vm(ref)
        times = {"next_at": at, "created_at": at, "updated_at": at}
        schedules[ref] = SnapshotSchedule(
            vm_id=vm.id, every=body.every, keep=body.keep, last_error="it was stopped", **times
        )
        return Item(item=schedules[ref])

    @app.get("/v1/vms/{ref}/snapshot-schedule")
    async def get_schedule(request: Request, ref: str) -> Item[SnapshotSchedule]:
        check(request)
        if ref not in schedules:
            raise NotFound("it has none", suggestion="make one")
        return Item(item=schedules[ref])

    @app.delete("/v1/vms/{ref}/snapshot-schedule")
    async def delete_schedule(request: Request, ref: str) -> Ok:
        check(request)
        del schedules[ref]
        return Ok()

    @app.post("/v1/vms/{ref}/restore")
    async def restore(request: Request, ref: str, body: VmRestore) -> Item[Vm]:
        check(request)
        wire.bodies.append(await request.json())
        of = find(body.snapshot)
        return Item(
            item=wire.vm(ref).model_copy(
                update={"origin": VmOrigin(snapshot=of.id, name=of.name, boot=2), "boot": 2}
            )
        )
