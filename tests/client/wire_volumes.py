"""Volumes on the wire of tests: any name is one that the VM ``web`` has."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from nexus.api.common import Created, Item, Page
from nexus.api.errors import InUse, InvalidState
from nexus.api.volumes import (
    Volume,
    VolumeAttach,
    VolumeChange,
    VolumeCreate,
    VolumeDetach,
    VolumeSnapshot,
)
from nexus.ids import new_id

if TYPE_CHECKING:
    from tests.client.wire import Wire


def add_volume_routes(app: FastAPI, wire: "Wire", check: Callable[[Request], None]) -> None:
    """One volume that a VM has."""

    def volume(name: str, size_mib: int = 64) -> Volume:
        return Volume(
            id=new_id(),
            name=name,
            project="default",
            state="attached",
            size_mib=size_mib,
            host_id=wire.host.id,
            vm_id=new_id(),
            vm_name="web",
            created_at=wire.host.created_at,
            updated_at=wire.host.created_at,
        )

    @app.get("/v1/volumes")
    async def volumes(request: Request) -> Page[Volume]:
        check(request)
        return Page(items=[volume("data")])

    @app.post("/v1/volumes", status_code=201)
    async def create_volume(request: Request, body: VolumeCreate) -> Created[Volume]:
        check(request)
        wire.bodies.append(body.model_dump(exclude_unset=True))
        made = volume(body.name, body.size_mib or 64)
        return Created(id=made.id, item=made)

    @app.get("/v1/volumes/{ref}")
    async def get_volume(request: Request, ref: str) -> Item[Volume]:
        check(request)
        return Item(item=volume(ref))

    @app.patch("/v1/volumes/{ref}")
    async def change_volume(request: Request, ref: str, body: VolumeChange) -> Item[Volume]:
        check(request)
        given = body.model_dump(exclude_unset=True)
        wire.bodies.append(given)
        return Item(item=volume(ref).model_copy(update=given))

    @app.post("/v1/volumes/{ref}/attach")
    async def attach_volume(request: Request, ref: str, body: VolumeAttach) -> Item[Volume]:
        check(request)
        wire.bodies.append(await request.json())
        vm = wire.vm(body.vm)
        if ref == "busy" and not body.restart:
            raise InvalidState("VM 'web' is running", suggestion="nexus stop web, or --reboot")
        return Item(item=volume(ref).model_copy(update={"vm_name": vm.name}))

    @app.post("/v1/volumes/{ref}/detach")
    async def detach_volume(request: Request, ref: str, body: VolumeDetach) -> Item[Volume]:
        check(request)
        wire.bodies.append(await request.json())
        return Item(item=volume(ref))

    @app.post("/v1/volumes/{ref}/snapshot", status_code=201)
    async def snapshot_volume(request: Request, ref: str, body: VolumeSnapshot) -> Created[Volume]:
        check(request)
        wire.bodies.append(await request.json())
        made = volume(body.name).model_copy(update={"state": "free", "vm_name": None})
        return Created(id=made.id, item=made)

    @app.delete("/v1/volumes/{ref}")
    async def delete_volume(request: Request, ref: str) -> dict[str, bool]:
        check(request)
        if ref == "busy":
            raise InUse("VM 'web' has it", suggestion="nexus rm web")
        return {"ok": True}
