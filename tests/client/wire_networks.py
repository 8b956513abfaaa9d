"""Networks and port forwards on the wire of tests."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request

from nexus.api.common import Created, Item, Page
from nexus.api.errors import (
    InUse,
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
from nexus.ids import new_id
from tests.client.things import NOW

if TYPE_CHECKING:
    from tests.client.wire import Wire


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
