"""``/v1/networks``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from nexus.api.common import Created, Item, Ok, Page
from nexus.api.networks import (
    Network,
    NetworkChange,
    NetworkCreate,
    NetworkMember,
    NetworkRef,
    NetworkWait,
)
from nexus.manager.routes.answers import item
from nexus.manager.routes.parts import WAIT_S, IdCursor, Limit, Wait_s
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/networks", tags=["networks"])

Reader = Annotated[Principal, require("networks:read")]
Writer = Annotated[Principal, require("networks:write")]
Ref = Annotated[NetworkRef, Path(description="A network's id, or its name.")]
Wait = Annotated[
    NetworkWait | None, Query(description="Answer when a host has it, or says why it cannot.")
]


@router.post("", status_code=201)
async def create(
    request: Request,
    nexus: Nexus,
    principal: Writer,
    body: NetworkCreate,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Created[Network]:
    """Makes a network. With ``wait`` the answer comes when it is ``ready``, or in ``error``."""
    caller = caller_of(request, principal, "networks:write")
    network = await nexus.networks.create(caller, body)
    if wait is not None:
        network = await nexus.networks.settled(network, nexus.waiters, timeout_s)
    return Created(id=network.id, item=network)


@router.get("")
async def find(
    nexus: Nexus, principal: Reader, cursor: IdCursor = None, limit: Limit = 100
) -> Page[Network]:
    """Networks in the order they were made."""
    return await nexus.networks.page(principal.project, cursor=cursor, limit=limit)


@router.get("/{ref}", response_model=Item[Network])
async def get(request: Request, nexus: Nexus, principal: Reader, ref: Ref) -> Response:
    """One network."""
    return item(request, await nexus.networks.get(principal.project, ref))


@router.get("/{ref}/vms")
async def members(nexus: Nexus, principal: Reader, ref: Ref) -> Page[NetworkMember]:
    """Which VMs are on a network, with which addresses."""
    return Page(items=await nexus.networks.members(principal.project, ref))


@router.patch("/{ref}", response_model=Item[Network])
async def change(
    request: Request,
    nexus: Nexus,
    principal: Writer,
    ref: Ref,
    body: NetworkChange,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Response:
    """Changes options of a network; its VMs go on meanwhile."""
    caller = caller_of(request, principal, "networks:write")
    network = await nexus.networks.change(caller, ref, body)
    if wait is not None:
        network = await nexus.networks.settled(network, nexus.waiters, timeout_s)
    return item(request, network)


@router.delete("/{ref}")
async def delete(request: Request, nexus: Nexus, principal: Writer, ref: Ref) -> Ok:
    """Removes a network. 409 while VMs are on it."""
    await nexus.networks.delete(caller_of(request, principal, "networks:write"), ref)
    return Ok()
