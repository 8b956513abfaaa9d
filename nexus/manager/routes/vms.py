"""``/v1/vms``: create, list, get, events."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from nexus.api.common import Created, Item, Page
from nexus.api.vms import Vm, VmCreate, VmEvent, VmState, WaitState
from nexus.manager.routes.parts import WAIT_S, IdCursor, Limit, VmRef, Wait_s
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require
from nexus.manager.services.waits import explain, wait_for

router = APIRouter(prefix="/v1/vms", tags=["vms"])

Reader = Annotated[Principal, require("vms:read")]
Writer = Annotated[Principal, require("vms:write")]

NamePrefix = Annotated[
    str | None, Query(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Names that begin so.")
]


@router.post("", status_code=201)
async def create(
    request: Request,
    body: VmCreate,
    nexus: Nexus,
    principal: Writer,
    wait: Annotated[WaitState | None, Query(description="Answer when the VM is so.")] = None,
    timeout_s: Wait_s = WAIT_S,
) -> Created[Vm]:
    """Makes a VM. With ``wait`` the answer comes when it is there, or in ``error``."""
    vm = await nexus.vms.create(body, caller_of(request, principal, "vms:write"))
    if wait is not None:
        seen = await wait_for(nexus.db, nexus.waiters, vm, wait, timeout_s)
        if seen is None:
            raise explain(None, wait)
        vm = seen
    return Created(id=vm.id, item=vm)


@router.get("")
async def list_vms(
    nexus: Nexus,
    principal: Reader,
    state: VmState | None = None,
    name: NamePrefix = None,
    cursor: IdCursor = None,
    limit: Limit = 100,
) -> Page[Vm]:
    """VMs in the order they were made."""
    found = await nexus.vms.page(
        principal.project, state=state, name_prefix=name, cursor=cursor, limit=limit
    )
    return Page(items=found.items, next_cursor=found.next_cursor)


@router.get("/{ref}")
async def get(ref: VmRef, nexus: Nexus, principal: Reader) -> Item[Vm]:
    """One VM, by id or name."""
    return Item(item=await nexus.vms.get(ref, principal.project))


@router.get("/{ref}/events")
async def events(
    ref: VmRef,
    nexus: Nexus,
    principal: Reader,
    cursor: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Limit = 100,
) -> Page[VmEvent]:
    """What happened to a VM, oldest first."""
    items, following = await nexus.vms.events(ref, principal.project, cursor=cursor, limit=limit)
    return Page(items=items, next_cursor=None if following is None else str(following))
