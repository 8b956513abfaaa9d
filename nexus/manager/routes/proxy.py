"""``/v1/vms/{id}/firecracker/{path}``: the VMM's own API, for operators; changes are audited."""

import re
from typing import Annotated

from fastapi import APIRouter, Request, Response

from nexus.api.errors import InvalidState, NexusError, NotFound
from nexus.manager.agent_http import Answer
from nexus.manager.routes.parts import VmRef
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require
from nexus.manager.uow import change

router = APIRouter(prefix="/v1/vms", tags=["vms"])

_ENDPOINT = re.compile(r"([A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,3})?", re.ASCII)
"""Nothing that a URL could read otherwise: no dots, no escapes, no queries."""

Operator = Annotated[Principal, require("vms:write")]


@router.api_route(
    "/{ref}/firecracker/{path:path}",
    methods=["GET", "PUT", "PATCH"],
    response_class=Response,
    operation_id="firecracker",
)
async def relay(
    ref: VmRef, path: str, request: Request, nexus: Nexus, principal: Operator
) -> Response:
    """Relays to the VM's API socket; the agent's allow-list decides what gets there."""
    if not _ENDPOINT.fullmatch(path):
        raise NotFound("the VMM has no such endpoint", suggestion="see Firecracker's API, 1.12")
    vm = await nexus.vms.get(ref, principal.project)
    if vm.host_id is None:
        raise InvalidState(f"VM {vm.name!r} has no host yet", suggestion="wait until it has one")
    body = await request.body()
    kind = request.headers.get("content-type")
    agent = nexus.agents.of(vm.host_id)
    if request.method == "GET":
        return _answer(await agent.proxy(vm.id, "GET", path, body, kind))
    refusal: NexusError | None = None
    answer: Answer | None = None
    try:
        answer = await agent.proxy(vm.id, request.method, path, body, kind)
    except NexusError as error:
        refusal = error
    caller = caller_of(request, principal, "vms:write")
    async with change(nexus.db, caller, "vm.firecracker", target=vm.id) as unit:
        unit.before = {"method": request.method, "path": path}
        if refusal is not None or answer is None:
            raise refusal or NotFound(f"the VMM has no endpoint {path!r}")
    return _answer(answer)


def _answer(answer: Answer) -> Response:
    return Response(
        answer.content,
        status_code=answer.status,
        media_type=answer.headers.get("content-type"),
    )
