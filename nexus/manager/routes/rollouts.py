"""``/v1/templates/{ref}/rollouts`` and ``/v1/rollouts``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from nexus.api.common import Created, Item, Ok, Page, Uuid, VmName
from nexus.api.rollouts import Rollout, RolloutAction, RolloutCreate, RolloutState, RolloutVm
from nexus.manager.routes.answers import item, page
from nexus.manager.routes.parts import IdCursor, Limit, Writer
from nexus.manager.routes.templates import Reader, Ref
from nexus.manager.runtime import Nexus, Runtime, caller_of
from nexus.manager.security import Principal

router = APIRouter(prefix="/v1", tags=["rollouts"])

RolloutId = Annotated[Uuid, Path(description="A rollout's id.")]
Of = Annotated[VmName | None, Query(description="Of this template: its id, or its name.")]


@router.post("/templates/{ref}/rollouts", status_code=201)
async def create(
    ref: Ref, request: Request, nexus: Nexus, principal: Writer, body: RolloutCreate
) -> Created[Rollout]:
    """Begins to move the template's VMs to one of its versions. Each is rebooted."""
    caller = caller_of(request, principal, "vms:write")
    rollout = await nexus.rollouts.create(caller, ref, body)
    return Created(id=rollout.id, item=rollout)


@router.get("/rollouts", response_model=Page[Rollout])
async def list_rollouts(
    nexus: Nexus,
    principal: Reader,
    template: Of = None,
    state: RolloutState | None = None,
    cursor: IdCursor = None,
    limit: Limit = 100,
) -> Response:
    """Rollouts in the order they were asked for."""
    found = await nexus.rollouts.page(
        principal.project, template=template, state=state, cursor=cursor, limit=limit
    )
    return page(found)


@router.get("/rollouts/{rollout_id}", response_model=Item[Rollout])
async def get(rollout_id: RolloutId, request: Request, nexus: Nexus, principal: Reader) -> Response:
    """One rollout, and how far it is."""
    return item(request, await nexus.rollouts.get(principal.project, rollout_id))


@router.get("/rollouts/{rollout_id}/vms", response_model=Page[RolloutVm])
async def members(
    rollout_id: RolloutId,
    nexus: Nexus,
    principal: Reader,
    cursor: IdCursor = None,
    limit: Limit = 100,
) -> Response:
    """The VMs of a rollout in the order of their turn, and what became of each."""
    found = await nexus.rollouts.members(principal.project, rollout_id, cursor=cursor, limit=limit)
    return page(found)


@router.post("/rollouts/{rollout_id}/halt")
async def halt(rollout_id: RolloutId, request: Request, nexus: Nexus, principal: Writer) -> Ok:
    """Begins no further batch until it is resumed. VMs that are on their way go on."""
    return await _act(nexus, request, principal, rollout_id, "halt")


@router.post("/rollouts/{rollout_id}/resume")
async def resume(rollout_id: RolloutId, request: Request, nexus: Nexus, principal: Writer) -> Ok:
    """Goes on with a rollout that was halted or has halted. VMs that failed are tried again."""
    return await _act(nexus, request, principal, rollout_id, "resume")


@router.post("/rollouts/{rollout_id}/cancel")
async def cancel(rollout_id: RolloutId, request: Request, nexus: Nexus, principal: Writer) -> Ok:
    """Ends a rollout where it is. What was done stays done."""
    return await _act(nexus, request, principal, rollout_id, "cancel")


@router.post("/rollouts/{rollout_id}/rollback")
async def rollback(rollout_id: RolloutId, request: Request, nexus: Nexus, principal: Writer) -> Ok:
    """Brings every VM that it changed back to what it was, in batches of the same size."""
    return await _act(nexus, request, principal, rollout_id, "rollback")


async def _act(
    nexus: Runtime, request: Request, principal: Principal, rollout_id: str, action: RolloutAction
) -> Ok:
    await nexus.rollouts.act(caller_of(request, principal, "vms:write"), rollout_id, action)
    return Ok()
