"""What ``/openapi.json`` says of every route beyond its own success: refusals, headers, the token.

FastAPI describes what each route answers when all is well. What any of them may answer instead is
the same for all of a kind, so it is said here, once. See docs/api.md.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from nexus.api.errors import ErrorBody
from nexus.manager.security import OPEN_PATHS

Operation = dict[str, Any]

WORDS = {
    400: "The request is no HTTP, no strict JSON, or what the VMM refuses.",
    401: "No valid token.",
    403: "The token may not do this, or the path is refused.",
    404: "There is no such thing.",
    405: "Not with this method.",
    409: "Not in this state, or not beside what is there.",
    410: "It is no longer there.",
    412: "It is not as it was when its ETag was read.",
    413: "The body is too large.",
    415: "Not in this form.",
    422: "A value that is not allowed.",
    429: "Too much at once.",
    502: "The host does not answer.",
    503: "Not ready.",
    504: "The time is up; nothing was undone.",
}
ALWAYS = (400, 413, 422)
GUARDED = (401, 403, 429)
CHANGES = (404, 409, 412)
HOSTS = (409, 502, 504)
"""What may come of asking a host."""

ETAGGED = frozenset(
    f"/v1/{kind}/{{ref}}" for kind in ("vms", "images", "templates", "snapshots", "volumes")
)
_ETAG = {"description": "The ETag of what is in the answer.", "schema": {"type": "string"}}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Sent again within a day, the request is answered again and not done again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_PRECONDITION = {
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": '^"[A-Za-z0-9]{1,64}"$'},
}


def install(app: FastAPI) -> None:
    """Has the application serve the completed description."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = completed(made)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def completed(description: dict[str, Any]) -> dict[str, Any]:
    """The description with what holds for every route."""
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    schemas["ErrorBody"] = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, method, operation in _operations(description):
        if path not in OPEN_PATHS:
            operation["security"] = [{"token": []}]
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _without_null(parameter["schema"])
        _add_headers(path, method, operation)
        responses = operation.setdefault("responses", {})
        if path.endswith("/firecracker/{path}") and method != "get":
            responses["204"] = {"description": "The VMM has taken it."}
        for status in refusals(path, method):
            responses[str(status)] = _refusal(status)
    return description


def refusals(path: str, method: str) -> set[int]:
    """The statuses with which a route may refuse a request."""
    if path in OPEN_PATHS:
        return {503, *ALWAYS} if path == "/readyz" else {*ALWAYS}
    found = {*ALWAYS, *GUARDED}
    if "{" in path or path == "/metrics":
        found.add(404)
    if method != "get":
        found.update(CHANGES)
    if path.startswith("/v1/vms") or (path.startswith("/v1/volumes/{ref}") and method != "get"):
        found.update(HOSTS)
    if path.endswith("/instantiate"):
        found.update(HOSTS)
    if path.startswith("/v1/snapshots/{ref}") and method != "get":
        found.update(HOSTS)
    if path == "/v1/images/{ref}":
        found.add(409)
    if path == "/v1/snapshots/import":
        found.update(HOSTS)
    if path.startswith("/v1/snapshots/{ref}/export"):
        found.update(HOSTS)
    if "/uploads/" in path or path.endswith(("/files", "/import")):
        found.update((409, 415))
    if path.endswith("/firecracker/{path}"):
        found.add(405)
    return found


def _operations(description: dict[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    for path, item in description["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _add_headers(path: str, method: str, operation: Operation) -> None:
    parameters = operation.setdefault("parameters", [])
    if method == "post":
        parameters.append(_IDEMPOTENCY_KEY)
    if path in ETAGGED:
        name = "If-None-Match" if method == "get" else "If-Match"
        parameters.append({"name": name, **_PRECONDITION})
        if method in ("get", "patch"):
            operation["responses"]["200"]["headers"] = {"ETag": _ETAG}
        if method == "get":
            operation["responses"]["304"] = {"description": "It is still the same."}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema: it may be left out, but no text of an address or a header is null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**kinds[0], **rest}


def _refusal(status: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ErrorBody"}
    return {"description": WORDS[status], "content": {"application/json": {"schema": schema}}}
