"""Who may do what: bearer tokens, permissions, and the gate before every route.

``Gate`` authenticates each request before anything of it is read or routed; ``require`` says which
permission a route needs; ``check_routes`` refuses to start a server with a route that says nothing.
See docs/security.md.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl

from fastapi import FastAPI, params
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.requests import HTTPConnection

from nexus import httpd
from nexus.api.errors import Forbidden, NexusError, Unauthenticated
from nexus.httpd import App, Receive, Scope, Send
from nexus.manager.strict_json import StrictJson
from nexus.manager.verify import LOGIN_HINT, Verifier

Permission = Literal[
    "vms:read",
    "vms:write",
    "vms:console",
    "vms:exec",
    "images:read",
    "images:write",
    "networks:read",
    "networks:write",
    "volumes:read",
    "volumes:write",
    "templates:read",
    "templates:write",
    "snapshots:read",
    "snapshots:write",
    "snapshots:import",
    "hosts:read",
    "hosts:write",
    "quotas:read",
    "quotas:write",
    "metrics:read",
    "blobs:read",
]
Role = Literal["viewer", "operator", "admin", "agent"]

_READ: frozenset[Permission] = frozenset(
    {
        "vms:read",
        "images:read",
        "networks:read",
        "volumes:read",
        "templates:read",
        "snapshots:read",
        "hosts:read",
        "quotas:read",
        "metrics:read",
    }
)
_OPERATE: frozenset[Permission] = frozenset(
    {
        "vms:write",
        "vms:console",
        "vms:exec",
        "volumes:write",
        "templates:write",
        "snapshots:write",
    }
)
_AGENT: frozenset[Permission] = frozenset({"blobs:read"})
"""Of hosts alone: contents belong to no project, so nobody's token reads them."""

ROLES: dict[Role, frozenset[Permission]] = {
    "viewer": _READ,
    "operator": _READ | _OPERATE,
    "admin": frozenset(get_args(Permission)) - _AGENT,
    "agent": _AGENT,
}
"""What each role may do; whatever is not listed is denied."""

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})
"""The only paths served without a token; they tell nothing about what is stored."""

_QUERY_NAMES = frozenset({"token", "access_token", "api_key", "apikey", "authorization", "bearer"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request."""

    token_id: str
    actor: str
    """The token's name: what events and audit show."""
    project: str
    role: Role
    permissions: frozenset[Permission]


class UndeclaredRoute(RuntimeError):
    """A route neither requires a permission nor is on the open list."""


class Require:
    """A dependency that lets a request through only if its token has ``permission``."""

    def __init__(self, permission: Permission) -> None:
        self.permission = permission

    async def __call__(self, connection: HTTPConnection) -> Principal:
        principal = connection.scope.get("state", {}).get("principal")
        if not isinstance(principal, Principal):
            raise Unauthenticated("this request carries no token", suggestion=LOGIN_HINT)
        if self.permission not in principal.permissions:
            raise Forbidden(
                f"the token {principal.actor!r} ({principal.role}) lacks {self.permission}",
                suggestion="use a token of a role that has this permission",
            )
        return principal


def require(permission: Permission) -> params.Depends:
    """``Annotated[Principal, require("vms:read")]`` on a route's parameter, HTTP or WebSocket."""
    return params.Depends(Require(permission))


def visible(principal: Principal, project: str | None) -> str:
    """The project a list shows: the token's own. Raises Forbidden for another one."""
    if project not in (None, principal.project):
        raise Forbidden(
            f"the token {principal.actor!r} sees project {principal.project!r} only",
            suggestion=f"use a token of project {project!r}",
        )
    return principal.project


class Gate:
    """ASGI middleware: no request without a valid token gets past it, whatever its path.

    Puts the ``Principal`` into the scope's state. Only ``OPEN_PATHS`` pass without one.
    """

    def __init__(self, app: App, *, verifier: Verifier) -> None:
        self.app = app
        self.verifier = verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] in ("http", "websocket") and scope["path"] not in OPEN_PATHS
        if guarded:
            try:
                token = bearer(scope)
                owner = await self.verifier.verify(token)
                role: Role = owner.role
                scope.setdefault("state", {})["principal"] = Principal(
                    token_id=owner.id,
                    actor=owner.name,
                    project=owner.project,
                    role=role,
                    permissions=ROLES[role],
                )
            except NexusError as error:
                await _refuse(scope, receive, send, error)
                return
        await self.app(scope, receive, send)


def install(app: FastAPI, verifier: Verifier) -> None:
    """Puts the gate before an application, and strict JSON behind the gate.

    Call it before ``httpd.install``, which goes outside of both.
    """
    app.add_middleware(StrictJson)
    app.add_middleware(Gate, verifier=verifier)


def check_routes(app: FastAPI) -> None:
    """Raises ``UndeclaredRoute`` unless each route declares a permission or is an open path."""
    undeclared = [
        f"{'/'.join(sorted(methods)) or 'ANY'} {path}"
        for path, methods, needed in declared(app)
        if not needed and path not in OPEN_PATHS
    ]
    if undeclared:
        raise UndeclaredRoute(
            f"routes without a permission: {', '.join(undeclared)}; "
            "declare one with require(…) or put the path on security.OPEN_PATHS"
        )


def declared(app: FastAPI) -> Iterator[tuple[str, frozenset[str], frozenset[Permission]]]:
    """Every route of an application: its path, methods and the permissions it requires."""
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route, "dependant", None)
        needed = (
            frozenset(_required(dependant)) if isinstance(dependant, Dependant) else frozenset()
        )
        yield route.path or "", frozenset(route.methods or ()), needed


def _required(dependant: Dependant) -> Iterator[Permission]:
    if isinstance(dependant.call, Require):
        yield dependant.call.permission
    for inner in dependant.dependencies:
        yield from _required(inner)


def bearer(scope: Mapping[str, Any]) -> str:
    """The token of a request's one ``Authorization: Bearer`` header."""
    if _in_query(scope.get("query_string", b"")):
        raise Unauthenticated(
            "a token in the query string is refused: addresses end up in logs and histories",
            suggestion=f"{LOGIN_HINT}; revoke the token if the address was shared",
        )
    given = [value for name, value in _headers(scope) if name == b"authorization"]
    if not given:
        raise Unauthenticated("this request carries no token", suggestion=LOGIN_HINT)
    scheme, _, token = given[0].partition(b" ")
    if len(given) > 1 or scheme.lower() != b"bearer" or not token.isascii():
        raise Unauthenticated(
            "the Authorization header is not one bearer token", suggestion=LOGIN_HINT
        )
    return token.decode("ascii").strip()


def _headers(scope: Mapping[str, Any]) -> Iterable[tuple[bytes, bytes]]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return headers


def _in_query(query: bytes) -> bool:
    if not query:
        return False
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return any(name.lower() in _QUERY_NAMES or "nxs_" in name + value for name, value in pairs)


async def _refuse(scope: Scope, receive: Receive, send: Send, error: NexusError) -> None:
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008, "reason": error.message})
            return
    response = httpd.answer(scope["state"]["request_id"], error)
    await response(scope, receive, send)
