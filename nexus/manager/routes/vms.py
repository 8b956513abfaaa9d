"""``/v1/vms``: create, list, get."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from nexus.api.common import Created, CreatedMany, Item, Page, VmName
from nexus.api.vms import Vm, VmCreate, VmState, VmUpdate, WaitState
from nexus.manager.keys import Done
from nexus.manager.routes.answers import item, page
from nexus.manager.routes.parts import WAIT_S, IdCursor, Limit, Project, VmRef, Wait_s
from nexus.manager.runtime import Nexus, Runtime, caller_of
from nexus.manager.security import Principal, require, visible
from nexus.manager.services import image_paths, vm_update
from nexus.manager.services.vm_creation import created
from nexus.manager.services.vm_filter import VmFilter
from nexus.manager.services.vm_tags import MOST_SELECTORS, TagSelector
from nexus.manager.services.waits import explain, timed_out, wait_for_all

router = APIRouter(prefix="/v1/vms", tags=["vms"])

Reader = Annotated[Principal, require("vms:read")]
Writer = Annotated[Principal, require("vms:write")]

NamePrefix = Annotated[
    str | None, Query(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Names that begin so.")
]
Host = Annotated[
    str | None,
    Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$", description="A host's id or name."),
]
Template = Annotated[VmName | None, Query(description="Of this template: its id, or its name.")]
Tag = Annotated[
    list[TagSelector],
    Query(
        max_length=MOST_SELECTORS,
        description="``key=value``, or ``key`` with any value; VMs must match all that are given.",
    ),
]


@router.post("", status_code=201)
async def create(
    request: Request,
    body: VmCreate,
    nexus: Nexus,
    principal: Writer,
    wait: Annotated[WaitState | None, Query(description="Answer when the VM is so.")] = None,
    timeout_s: Wait_s = WAIT_S,
) -> CreatedMany[Vm] | Created[Vm]:
    """Makes a VM, or ``count`` of them. With ``wait`` the answer comes when each is so, or in
    ``error``. ``items`` are all of them, if there was a ``count``."""
    caller = caller_of(request, principal, "vms:write")
    try:
        body = await image_paths.replaced(nexus.images, caller, body)
        vms = await nexus.creation.create(body, caller)
    except Done as done:
        vms = await nexus.vms.done_before(done, caller.project)
    if wait is not None:
        vms = await awaited(nexus, vms, wait, timeout_s)
    return created(body, vms)


async def awaited(nexus: Runtime, vms: list[Vm], state: WaitState, timeout_s: float) -> list[Vm]:
    """The new VMs as they are when each has come to its end. Raises TimedOut or NotFound."""
    seen = await wait_for_all(nexus.db, nexus.waiters, vms, state, timeout_s)
    found = []
    for vm in vms:
        if vm.id not in seen:
            raise timed_out(vm, state, timeout_s)
        now = seen[vm.id]
        if now is None:
            raise explain(None, state)
        found.append(now)
    return found


@router.get("", response_model=Page[Vm])
async def list_vms(
    nexus: Nexus,
    principal: Reader,
    state: VmState | None = None,
    host: Host = None,
    project: Project = None,
    tag: Tag = [],  # noqa: B006 - nothing changes it
    name: NamePrefix = None,
    template: Template = None,
    pooled: Annotated[bool, Query(description="Also VMs that wait in pools.")] = False,
    cursor: IdCursor = None,
    limit: Limit = 100,
) -> Response:
    """VMs in the order they were made, narrowed to those that meet all conditions."""
    narrowed = VmFilter(
        state=state, host=host, name_prefix=name, pooled=pooled, template=template, tags=tag
    )
    found = await nexus.vms.page(visible(principal, project), narrowed, cursor=cursor, limit=limit)
    return page(Page(items=found.items, next_cursor=found.next_cursor))


@router.get("/{ref}", response_model=Item[Vm])
async def get(ref: VmRef, request: Request, nexus: Nexus, principal: Reader) -> Response:
    """One VM, by id or name."""
    return item(request, await nexus.vms.get(ref, principal.project))


@router.patch("/{ref}", response_model=Item[Vm])
async def update(
    ref: VmRef, body: VmUpdate, request: Request, nexus: Nexus, principal: Writer
) -> Response:
    """Renames a VM or replaces its tags. Its guest has the new host name from its next start."""
    caller = caller_of(request, principal, "vms:write")
    vm = await vm_update.update(nexus.db, nexus.pipeline, nexus.expiry, ref, body, caller)
    return item(request, vm)
