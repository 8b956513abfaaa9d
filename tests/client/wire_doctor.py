"""The network doctor of the wire double."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from nexus.api.common import Item
from nexus.api.doctor import Check, NetworkDoctor

if TYPE_CHECKING:
    from tests.client.wire import Wire


def add_doctor_route(app: FastAPI, wire: "Wire", check: Callable[[Request], None]) -> None:
    """``bad`` is the only VM that something is wrong with."""

    @app.get("/v1/vms/{ref}/network-doctor")
    async def network_doctor(request: Request, ref: str) -> Item[NetworkDoctor]:
        check(request)
        vm = wire.vm(ref)
        checks = [Check(step="host", outcome="ok", message="the host answers")]
        if vm.name == "bad":
            cure = "ip link set nx1 up"
            down = Check(
                step="tap", iface="eth0", outcome="bad", message="nx1 is down", suggestion=cure
            )
            checks.append(down)
        healthy = vm.name != "bad"
        return Item(item=NetworkDoctor(vm_id=vm.id, name=vm.name, healthy=healthy, checks=checks))
