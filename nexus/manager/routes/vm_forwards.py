"""``/v1/vms/{id}/forwards``."""

from typing import Annotated

from fastapi import APIRouter, Request

from nexus.api.common import Created, Ok, Page, Uuid
from nexus.api.networks import PortForward, PortForwardCreate
from nexus.manager.routes.parts import VmRef
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/vms", tags=["networks"])

Reader = Annotated[Principal, require("vms:read")]
Writer = Annotated[Principal, require("vms:write")]


@router.post("/{ref}/forwards", status_code=201)
async def create(
    ref: VmRef, request: Request, nexus: Nexus, principal: Writer, body: PortForwardCreate
) -> Created[PortForward]:
    """Has a port of the VM's host lead to the VM. 409 when the port leads to another one."""
    caller = caller_of(request, principal, "vms:write")
    forward = await nexus.forwards.create(caller, ref, body)
    return Created(id=forward.id, item=forward)


@router.get("/{ref}/forwards")
async def find(ref: VmRef, nexus: Nexus, principal: Reader) -> Page[PortForward]:
    """A VM's forwards, by port."""
    return Page(items=await nexus.forwards.of_vm(principal.project, ref))


@router.delete("/{ref}/forwards/{forward_id}")
async def delete(
    ref: VmRef, forward_id: Uuid, request: Request, nexus: Nexus, principal: Writer
) -> Ok:
    """Gives a port back."""
    await nexus.forwards.delete(caller_of(request, principal, "vms:write"), ref, forward_id)
    return Ok()
