"""The gate: closed by default, for every path, method and protocol."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, WebSocket

from nexus import httpd
from nexus.manager import security, verify
from nexus.manager.security import Principal, Role, UndeclaredRoute, check_routes, require
from nexus.manager.verify import StoredToken, Verifier, make_token, parse

pytestmark = pytest.mark.anyio

Reader = Annotated[Principal, require("vms:read")]
Writer = Annotated[Principal, require("vms:write")]


def application(verifier: Verifier) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None)
    router = APIRouter(prefix="/v1")

    @router.get("/things")
    async def things(principal: Reader) -> dict[str, str]:
        return {"actor": principal.actor, "project": principal.project}

    @router.post("/things")
    async def make(principal: Writer, body: dict[str, Any]) -> dict[str, bool]:
        return {"ok": True}

    @router.websocket("/stream")
    async def stream(websocket: WebSocket, principal: Writer) -> None:
        await websocket.accept()
        await websocket.close()

    @app.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    app.include_router(router)
    security.install(app, verifier)
    httpd.install(app)
    return app


class Tokens:
    """One token of each role."""

    def __init__(self) -> None:
        self.text: dict[Role, str] = {role: make_token() for role in security.ROLES}
        self.rows: dict[str, StoredToken] = {}
        for role, token in self.text.items():
            parts = parse(token)
            assert parts is not None
            hashed = verify.hash_secret(parts[1])
            self.rows[parts[0]] = StoredToken(
                role, parts[0], hashed, f"a {role}", "default", role, None, None
            )

    async def find(self, lookup_id: str) -> StoredToken | None:
        return self.rows.get(lookup_id)


TOKENS = Tokens()


@pytest.fixture
def app() -> FastAPI:
    return application(Verifier(TOKENS.find))


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://manager") as client:
        yield client


def bearer(role: Role) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS.text[role]}"}


def assert_refused(answer: httpx.Response, status: int, error: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["status"], body["error"]) == (status, status, error)
    assert body["suggestion"]
    assert body["request_id"] == answer.headers["x-request-id"]


async def test_a_valid_token_says_who_asks(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/things", headers=bearer("viewer"))
    assert answer.json() == {"actor": "a viewer", "project": "default"}


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/v1/things", "/v1/stream", "/nowhere", "/", "/healthz/"])
async def test_nothing_is_served_without_a_token(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await http.request(method, path)
    assert_refused(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_open_list_needs_no_token(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/openapi.json")).status_code == 200


async def test_a_role_without_the_permission_is_forbidden(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/things", json={}, headers=bearer("viewer"))
    assert_refused(answer, 403, "forbidden")
    answer = await http.post("/v1/things", json={}, headers=bearer("operator"))
    assert answer.status_code == 200


async def test_a_body_is_not_read_before_the_token(http: httpx.AsyncClient) -> None:
    big = b"[" * (2 << 20)
    answer = await http.post(
        "/v1/things", content=big, headers={"content-type": "application/json"}
    )
    assert_refused(answer, 401, "unauthenticated")


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Basic YWRtaW46YWRtaW4=")],
        [("authorization", "Bearer nxs_0000000000000000_" + "0" * 64)],
        [("authorization", f"Bearer {TOKENS.text['admin']}x")],
        [("authorization", TOKENS.text["admin"])],
        [("authorization", f"Bearer {TOKENS.text['admin']}")] * 2,
        [("cookie", f"token={TOKENS.text['admin']}")],
        [("x-api-key", TOKENS.text["admin"])],
    ],
)
async def test_only_one_well_formed_bearer_header_counts(
    http: httpx.AsyncClient, headers: list[tuple[str, str]]
) -> None:
    answer = await http.get("/v1/things", headers=headers)
    assert_refused(answer, 401, "unauthenticated")


@pytest.mark.parametrize("name", ["token", "access_token", "x"])
async def test_a_token_in_the_query_string_is_refused(http: httpx.AsyncClient, name: str) -> None:
    query = {name: TOKENS.text["admin"]}
    answer = await http.get("/v1/things", params=query)
    assert_refused(answer, 401, "unauthenticated")
    answer = await http.get("/v1/things", params=query, headers=bearer("admin"))
    assert_refused(answer, 401, "unauthenticated")


async def websocket_answer(
    app: FastAPI, headers: list[tuple[bytes, bytes]]
) -> list[dict[str, Any]]:
    """What an application sends to a WebSocket handshake."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/v1/stream",
        "raw_path": b"/v1/stream",
        "query_string": b"",
        "headers": headers,
        "extensions": {"websocket.http.response": {}},
        "subprotocols": [],
        "root_path": "",
        "scheme": "ws",
    }
    await app(scope, receive, send)
    return sent


async def test_websockets_pass_the_same_gate(app: FastAPI) -> None:
    sent = await websocket_answer(app, [])
    assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 401)
    viewer = (b"authorization", b"Bearer " + TOKENS.text["viewer"].encode())
    sent = await websocket_answer(app, [viewer])
    assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 403)
    operator = (b"authorization", b"Bearer " + TOKENS.text["operator"].encode())
    sent = await websocket_answer(app, [operator])
    assert sent[0]["type"] == "websocket.accept"


def test_a_server_with_an_undeclared_route_does_not_start(app: FastAPI) -> None:
    check_routes(app)
    forgotten = APIRouter(prefix="/v1")

    @forgotten.get("/forgotten")
    async def forgotten_route() -> None: ...

    app.include_router(forgotten)
    with pytest.raises(UndeclaredRoute, match="GET /v1/forgotten"):
        check_routes(app)


def test_an_undeclared_websocket_or_mount_does_not_start(app: FastAPI) -> None:
    @app.websocket("/v1/open")
    async def open_stream(websocket: WebSocket) -> None: ...

    with pytest.raises(UndeclaredRoute, match="/v1/open"):
        check_routes(app)
    other = application(Verifier(TOKENS.find))
    other.mount("/static", FastAPI())
    with pytest.raises(UndeclaredRoute, match="/static"):
        check_routes(other)


def test_a_router_may_declare_for_all_its_routes(app: FastAPI) -> None:
    router = APIRouter(prefix="/v1", dependencies=[require("hosts:read")])

    @router.get("/hosts")
    async def hosts() -> None: ...

    app.include_router(router)
    check_routes(app)
    needed = {path: permissions for path, _, permissions in security.declared(app)}
    assert needed["/v1/hosts"] == {"hosts:read"}
