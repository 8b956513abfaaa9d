"""``/v1/vms/{id}/firecracker/{path}``: the VMM's own API, for operators; changes are audited."""

import re
from typing import Annotated

from fastapi import APIRouter, Request, Response

from nexus import httpd
from nexus.api.errors import BadRequest, InvalidState, NotFound, PathRefused
from nexus.api.machines import VMM_BODY_BYTES
from nexus.api.vms import Vm
from nexus.httpd import App, BodyBound, Receive, Scope, Send
from nexus.manager.agent_http import Answer
from nexus.manager.routes.parts import VmRef
from nexus.manager.runtime import Nexus, Runtime, caller_of
from nexus.manager.security import Principal, require
from nexus.manager.uow import deed

router = APIRouter(prefix="/v1/vms", tags=["vms"])

_ENDPOINT = re.compile(r"([A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,3})?", re.ASCII)
"""Nothing that a URL could read otherwise: no dots, no escapes, no queries."""
_PROXIED = re.compile(r"/v1/vms/[^/]*/firecracker(/|$)")

Operator = Annotated[Principal, require("vms:write")]


class ProxyBound:
    """ASGI middleware, inside of the edge: a body for a VMM is bounded before anybody reads it."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _PROXIED.match(scope["path"]):
            bound = scope["state"].get("body_bound")
            if isinstance(bound, BodyBound):
                bound.max_bytes = VMM_BODY_BYTES
        await self.app(scope, receive, send)


async def relay(
    ref: VmRef, path: str, request: Request, nexus: Nexus, principal: Operator
) -> Response:
    """Relays to the VM's API socket; the agent's allow-list decides what gets there."""
    vm = await nexus.vms.get(ref, principal.project)
    body = await httpd.read_body(request, VMM_BODY_BYTES)
    caller = caller_of(request, principal, "vms:write")

    async def work() -> Answer:
        if request.method == "GET":
            return await _relayed(nexus, vm, request, path, body)
        tried: dict[str, object] = {"method": request.method, "path": path[:200]}
        async with deed(nexus.db, caller, "vm.firecracker", target=vm.id, before=tried) as done:
            with nexus.pipeline.at_api(vm.id, caller):
                answer = await _relayed(nexus, vm, request, path, body)
                if path == "vm":
                    await _observe(nexus, vm)
            done.after = {"status": answer.status}
            return answer

    answer = await httpd.while_connected(request, work)
    return Response(
        answer.content,
        status_code=answer.status,
        media_type=answer.headers.get("content-type"),
    )


for _method in ("GET", "PUT", "PATCH"):
    router.add_api_route(
        "/{ref}/firecracker/{path:path}",
        relay,
        methods=[_method],
        response_class=Response,
        operation_id=f"firecracker_{_method.lower()}",
    )


async def _relayed(nexus: Runtime, vm: Vm, request: Request, path: str, body: bytes) -> Answer:
    _check_address(request, path, vm)
    if vm.host_id is None:
        raise InvalidState(f"VM {vm.name!r} has no host yet", suggestion="wait until it has one")
    kind = request.headers.get("content-type")
    return await nexus.agents.of(vm.host_id).proxy(vm.id, request.method, path, body, kind)


def _check_address(request: Request, path: str, vm: Vm) -> None:
    if b"%" in request.scope["raw_path"] or not _ENDPOINT.fullmatch(path):
        raise NotFound("the VMM has no such endpoint", suggestion="see Firecracker's API, 1.12")
    for name, value in request.query_params.multi_items():
        if name.strip().lower() != "sock":
            raise BadRequest(f"the proxy takes no query {name[:64]!r}", suggestion="leave it away")
        if name != "sock" or value != vm.socket:
            raise PathRefused(
                "the socket is the VM's own, and no other", suggestion="leave ?sock= away"
            )


async def _observe(nexus: Runtime, vm: Vm) -> None:
    """Has the row say what the VM is now, and who made it so, before the request is answered."""
    if vm.host_id is not None:
        await nexus.pipeline.apply_pushed(await nexus.agents.of(vm.host_id).get_vm(vm.id))
