"""What ``/openapi.json`` says, and that the manager keeps to it whatever is sent."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from jsonschema_rs import validator_for

from nexus import httpd
from nexus.manager.app import create_app
from nexus.manager.config import Settings
from nexus.manager.pipelines.builds import BuildPipeline
from nexus.manager.security import OPEN_PATHS, declared
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, settings_for, until
from tests.manager.schemathesis_hooks import KEPT

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent
BUDGET_S = 75
SEED = 1912


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings.from_env({"NEXUS_DATA_DIR": "/nonexistent"}))


def operations(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in app.openapi()["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_every_route_is_described_with_its_refusals(app: FastAPI) -> None:
    described = {(path, method.upper()) for path, method, _ in operations(app)}
    served = {
        (path.replace(":path}", "}"), method)
        for path, methods, _ in declared(app)
        for method in methods - {"HEAD"}
        if path != "/openapi.json"
    }
    assert described == served
    for path, method, operation in operations(app):
        refusals = {code: said for code, said in operation["responses"].items() if code >= "400"}
        wanted = {"400", "413", "422"} | (set() if path in OPEN_PATHS else {"401", "403", "429"})
        assert refusals.keys() >= wanted, (method, path)
        for said in refusals.values():
            schema = said["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert ("Idempotency-Key" in names) == (method == "post")
        assert ("security" in operation) == (path not in OPEN_PATHS)


def test_metrics_are_text(app: FastAPI) -> None:
    responses = app.openapi()["paths"]["/metrics"]["get"]["responses"]
    assert responses["200"]["content"].keys() == {"text/plain"}
    assert "404" in responses


def test_the_description_has_no_loose_ends(app: FastAPI) -> None:
    description = app.openapi()

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    schemas = description["components"]["schemas"]
    named = {reference.rpartition("/")[2] for reference in references(description)}
    assert named <= schemas.keys()
    assert "HTTPValidationError" not in schemas
    for schema in schemas.values():
        validator_for({**schema, "components": description["components"]})


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/vms", "GET, POST"),
        ("OPTIONS", "/v1/vms/web", "DELETE, GET, PATCH"),
        ("OPTIONS", "/v1/vms/actions", "POST"),
        ("GET", "/v1/vms/web/start", "POST"),
        ("PUT", "/v1/images/builds", "GET, POST"),
        ("POST", "/healthz", "GET"),
    ],
)
async def test_405_names_all_methods(
    sqlite_manager: Manager, method: str, path: str, allowed: str
) -> None:
    answer = await sqlite_manager.http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["error"] == "method_not_allowed"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.timeout(400)
async def test_no_request_gets_a_5xx_or_an_answer_that_is_not_described(
    tmp_path: Path, sqlite_url: str, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """schemathesis, all checks, for a bounded time, over a real socket."""
    # Builds that are asked for stay queued: they would use the network.
    monkeypatch.setattr(BuildPipeline, "run", lambda _: anyio.sleep_forever())
    (tmp_path / "images").mkdir()
    app = create_app(settings_for(tmp_path, sqlite_url, agent.url))
    server = httpd.server(app, drain_s=0)
    server.config.loop = "none"
    listener = httpd.listen("127.0.0.1:0")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: server.serve(sockets=[listener]))

        async def started() -> bool:
            return server.started

        await until("the manager serves", started)
        try:
            token = (tmp_path / "admin.token").read_text().strip()
            async with httpx.AsyncClient(
                base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=60
            ) as http:
                manager = Manager(app.state.runtime, http, app, token)
                await until("the manager is ready", manager.is_ready)
                await manager.add_defaults()
                await manager.create(name=KEPT)
            command = [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(HERE / "schemathesis.toml")),
                *("run", f"{url}/openapi.json", "--max-time", str(BUDGET_S), "--no-color"),
                # The same requests each time: who sends others chooses another seed by hand.
                *("--seed", str(SEED)),
            ]
            environment = {
                "NEXUS_TEST_TOKEN": token,
                "SCHEMATHESIS_HOOKS": "tests.manager.schemathesis_hooks",
                "PYTHONPATH": str(HERE.parents[1]),
            }
            ended = await anyio.run_process(
                command, check=False, cwd=tmp_path, env=os.environ | environment
            )
        finally:
            server.should_exit = server.force_exit = True
    report = ended.stdout.decode() + ended.stderr.decode()
    assert ended.returncode == 0, report
    assert "generated" in report
