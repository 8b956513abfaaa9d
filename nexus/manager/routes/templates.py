"""``/v1/templates``: templates, their versions, and VMs of them."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from nexus.api.common import Created, Item, Ok, Page, VmName
from nexus.api.templates import (
    Instantiated,
    Template,
    TemplateChange,
    TemplateCreate,
    TemplateDiff,
    TemplateInstantiate,
    TemplatePreboot,
    TemplateVersion,
)
from nexus.api.vms import WaitState
from nexus.manager.keys import Done
from nexus.manager.routes.answers import item, page
from nexus.manager.routes.parts import WAIT_S, IdCursor, Limit, Wait_s, Writer
from nexus.manager.routes.vms import NamePrefix, awaited
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require
from nexus.manager.services import image_paths
from nexus.manager.services.templates import instantiated

router = APIRouter(prefix="/v1/templates", tags=["templates"])

LARGEST = (1 << 31) - 1
Reader = Annotated[Principal, require("templates:read")]
Changer = Annotated[Principal, require("templates:write")]
Ref = Annotated[VmName, Path(description="A template's id, or its name.")]
Number = Annotated[int, Path(ge=1, le=LARGEST, description="A version's number.")]
QueryNumber = Annotated[int | None, Query(ge=1, le=LARGEST, description="A version's number.")]


@router.post("", status_code=201)
async def create(
    request: Request, nexus: Nexus, principal: Changer, body: TemplateCreate
) -> Created[Template]:
    """Makes a template: its version 1."""
    caller = caller_of(request, principal, "templates:write")
    spec = await image_paths.replaced(nexus.images, caller, body.spec)
    template = await nexus.templates.create(caller, body.model_copy(update={"spec": spec}))
    return Created(id=template.id, item=template)


@router.get("", response_model=Page[Template])
async def list_templates(
    nexus: Nexus,
    principal: Reader,
    name: NamePrefix = None,
    cursor: IdCursor = None,
    limit: Limit = 100,
) -> Response:
    """Templates in the order they were made, as they are now."""
    return page(
        await nexus.templates.page(principal.project, name=name, cursor=cursor, limit=limit)
    )


@router.get("/{ref}", response_model=Item[Template])
async def get(ref: Ref, request: Request, nexus: Nexus, principal: Reader) -> Response:
    """One template, as its newest version is."""
    return item(request, await nexus.templates.get(principal.project, ref))


@router.patch("/{ref}", response_model=Item[Template])
async def update(
    ref: Ref, body: TemplateChange, request: Request, nexus: Nexus, principal: Changer
) -> Response:
    """Makes a new version; VMs that are there stay as they are."""
    caller = caller_of(request, principal, "templates:write")
    spec = await image_paths.replaced(nexus.images, caller, body.spec)
    change = body.model_copy(update={"spec": spec})
    return item(request, await nexus.templates.update(caller, ref, change))


@router.delete("/{ref}")
async def delete(ref: Ref, request: Request, nexus: Nexus, principal: Changer) -> Ok:
    """Deletes a template with all its versions. Its VMs stay."""
    await nexus.templates.delete(caller_of(request, principal, "templates:write"), ref)
    return Ok()


@router.get("/{ref}/versions", response_model=Page[TemplateVersion])
async def versions(
    ref: Ref,
    nexus: Nexus,
    principal: Reader,
    cursor: QueryNumber = None,
    limit: Limit = 100,
) -> Response:
    """The versions of a template, oldest first."""
    found = await nexus.templates.versions(principal.project, ref, cursor=cursor, limit=limit)
    return page(found)


@router.get("/{ref}/versions/{number}")
async def version(
    ref: Ref, number: Number, nexus: Nexus, principal: Reader
) -> Item[TemplateVersion]:
    """One version."""
    return Item(item=await nexus.templates.version(principal.project, ref, number))


@router.get("/{ref}/diff")
async def diff(
    ref: Ref,
    nexus: Nexus,
    principal: Reader,
    before: QueryNumber = None,
    after: QueryNumber = None,
    vm: Annotated[VmName | None, Query(description="A VM's id, or its name.")] = None,
) -> Item[TemplateDiff]:
    """How version ``after`` (the newest) differs from ``before`` (the one before it); with ``vm``
    how that VM differs from ``before`` (the version that it comes from)."""
    return Item(item=await nexus.templates.diff(principal.project, ref, before, after, vm))


@router.get("/{ref}/preboots")
async def preboots(ref: Ref, nexus: Nexus, principal: Reader) -> Page[TemplatePreboot]:
    """Where VMs of a template with ``preboot`` were booted before, and are clones from now on."""
    return await nexus.templates.preboots(principal.project, ref)


@router.post("/{ref}/instantiate", status_code=201)
async def instantiate(
    ref: Ref,
    body: TemplateInstantiate,
    request: Request,
    nexus: Nexus,
    principal: Writer,
    wait: Annotated[WaitState | None, Query(description="Answer when the VM is so.")] = None,
    timeout_s: Wait_s = WAIT_S,
) -> Instantiated:
    """Makes a VM of a template, or ``count`` of them. With ``wait`` the answer comes when each is
    so, or in ``error``."""
    caller = caller_of(request, principal, "vms:write")
    try:
        body = await image_paths.replaced(nexus.images, caller, body)
        made, made_of = await nexus.templates.instantiate(caller, ref, body)
    except Done as done:
        made = await nexus.vms.done_before(done, caller.project)
        made_of = await nexus.templates.made_before(made, ref, caller.project, done)
    if wait is not None:
        made = await awaited(nexus, made, wait, timeout_s)
    return instantiated(made, made_of, body)
