"""``PATCH /v1/vms/{id}/drives/{name}``, ``…/nics/{iface}`` and ``…/balloon``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from nexus.api.common import Item
from nexus.api.devices import BalloonChange, DeviceWait, DriveChange, DriveId, Iface, NicChange
from nexus.api.vms import Vm
from nexus.manager.routes.answers import item
from nexus.manager.routes.parts import WAIT_S, VmRef, Wait_s
from nexus.manager.runtime import Nexus, Runtime, caller_of
from nexus.manager.security import Principal, require
from nexus.manager.services.vm_devices import refusal_of
from nexus.manager.services.waits import explain, wait_for

router = APIRouter(prefix="/v1/vms", tags=["vms"])

Writer = Annotated[Principal, require("vms:write")]
Wait = Annotated[
    DeviceWait | None, Query(description="Answer when a VM that runs has it, or its VMM refused.")
]


@router.patch("/{ref}/drives/{name}", response_model=Item[Vm])
async def change_drive(
    ref: VmRef,
    name: Annotated[DriveId, Path(description="A drive's name; ``rootfs`` is the root disk.")],
    body: DriveChange,
    request: Request,
    nexus: Nexus,
    principal: Writer,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Response:
    """Limits a drive, or makes it larger. A VM that does not run has it at its next boot."""
    caller = caller_of(request, principal, "vms:write")
    vm = await nexus.devices.change_drive(ref, name, body, caller)
    return item(request, await _settled(nexus, vm, wait, timeout_s))


@router.patch("/{ref}/nics/{iface}", response_model=Item[Vm])
async def change_nic(
    ref: VmRef,
    iface: Annotated[Iface, Path(description="``eth0``.")],
    body: NicChange,
    request: Request,
    nexus: Nexus,
    principal: Writer,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Response:
    """Limits a NIC. A VM that does not run has it at its next boot."""
    caller = caller_of(request, principal, "vms:write")
    vm = await nexus.devices.change_nic(ref, iface, body, caller)
    return item(request, await _settled(nexus, vm, wait, timeout_s))


@router.patch("/{ref}/balloon", response_model=Item[Vm])
async def change_balloon(
    ref: VmRef,
    body: BalloonChange,
    request: Request,
    nexus: Nexus,
    principal: Writer,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Response:
    """Says how much of its memory the guest is to give back."""
    caller = caller_of(request, principal, "vms:write")
    vm = await nexus.devices.change_balloon(ref, body, caller)
    return item(request, await _settled(nexus, vm, wait, timeout_s))


async def _settled(nexus: Runtime, vm: Vm, wait: DeviceWait | None, timeout_s: float) -> Vm:
    """With a wait: the VM once it is so, or the VMM's refusal as an error. What was asked for stays
    wanted all the same."""
    if wait is not None:
        seen = await wait_for(nexus.db, nexus.waiters, vm, wait, timeout_s)
        if seen is None:
            raise explain(None, wait)
        refusal = refusal_of(seen)
        if refusal is not None:
            raise refusal
        vm = seen
    return vm
