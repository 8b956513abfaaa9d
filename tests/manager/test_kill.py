"""The manager as a process: it serves, relays consoles, stops in time, and survives kill -9."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from websockets.asyncio.client import connect

from nexus import httpd
from nexus.ids import new_id
from nexus.manager.app import create_app
from nexus.manager.db.session import Database
from nexus.manager.db.tables import ImageRow
from nexus.manager.pipelines.expiry import ExpiryPipeline
from tests.manager.agent_double import AgentDouble
from tests.manager.core import settings_for, until

pytestmark = pytest.mark.anyio

KILLS = 10


class Process:
    """``python -m nexus.manager`` in a folder."""

    def __init__(self, folder: Path, port: int, agent_url: str, repo: Path) -> None:
        self.folder = folder
        self.bind = f"127.0.0.1:{port}"
        self.repo = repo
        self.env = {
            **os.environ,
            "NEXUS_DATA_DIR": str(folder),
            "NEXUS_AGENT_URL": agent_url,
            "MANAGER_BIND": self.bind,
            "MANAGER_IMAGE_ROOT": str(folder),
        }
        self.popen: subprocess.Popen[bytes] | None = None

    async def start(self, http: httpx.AsyncClient) -> None:
        with (self.folder / "manager.log").open("ab") as log:
            self.popen = subprocess.Popen(  # noqa: ASYNC220 - fork and exec are milliseconds
                [sys.executable, "-m", "nexus.manager"],
                cwd=self.repo,
                env=self.env,
                stdout=subprocess.PIPE,
                stderr=log,
            )

        async def is_ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return (await http.get("/readyz")).status_code == 200
            return False

        await until("the manager is ready", is_ready)

    def kill(self) -> None:
        assert self.popen is not None
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
async def process(
    tmp_path: Path, free_port: int, agent: AgentDouble, repo: Path
) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    made = Process(tmp_path, free_port, agent.url, repo)
    async with httpx.AsyncClient(
        base_url=f"http://{made.bind}", trust_env=False, timeout=30
    ) as http:
        await made.start(http)
        token = (tmp_path / "admin.token").read_text().strip()
        http.headers["authorization"] = f"Bearer {token}"
        db = Database(f"sqlite:///{tmp_path / 'nexus.db'}")
        async with db.write() as session:
            session.add(
                ImageRow(
                    id=new_id(),
                    project="default",
                    kind="kernel",
                    name="tiny",
                    sha256="a" * 64,
                    size_bytes=1,
                    source="test",
                    created_at=datetime.now(UTC),
                )
            )
        await db.close()
        yield made, http
        made.kill()


async def test_a_manager_whose_background_work_fails_ends(
    tmp_path: Path, sqlite_url: str, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than answer for ever and do nothing of it: whoever watches it starts another."""
    cause = anyio.Event()

    async def fail(_: ExpiryPipeline) -> None:
        await cause.wait()
        raise RuntimeError("a fault nobody thought of")

    monkeypatch.setattr(ExpiryPipeline, "run", fail)
    server = httpd.server(create_app(settings_for(tmp_path, sqlite_url, agent.url)))
    server.config.loop = "none"
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    listener = httpd.listen("127.0.0.1:0")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with anyio.fail_after(30):
        async with httpx.AsyncClient(base_url=url) as http, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: server.serve(sockets=[listener]))

            async def serves() -> bool:
                return server.started

            await until("it serves", serves)
            assert (await http.get("/healthz")).status_code == 200
            assert not server.failed
            cause.set()
    assert server.failed


async def test_killed_at_any_moment_of_a_create(
    process: tuple[Process, httpx.AsyncClient], agent: AgentDouble
) -> None:
    manager, http = process
    moments = random.Random(11)  # noqa: S311
    for number in range(KILLS):
        name = f"k{number}"

        async def create(name: str = name) -> None:
            with contextlib.suppress(httpx.TransportError):
                await http.post("/v1/vms", json={"kernel": "tiny", "name": name})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(create)
            await anyio.sleep(moments.uniform(0, 0.02))
            manager.kill()
        await manager.start(http)
        rows = (await http.get("/v1/vms", params={"name": name})).json()["items"]
        held = [vm_id for vm_id, machine in agent.machines.items() if machine.name == name]
        if not rows:
            assert not held, "a machine without a row"
            continue

        async def runs(vm_id: str = rows[0]["id"]) -> bool:
            item = (await http.get(f"/v1/vms/{vm_id}")).json()["item"]
            return bool(item["state"] == "running")

        await until(f"{name} runs", runs, timeout_s=10)
        assert agent.boots[rows[0]["id"]] == {1}


async def test_killed_at_any_moment_of_a_snapshot(
    process: tuple[Process, httpx.AsyncClient], agent: AgentDouble
) -> None:
    manager, http = process
    made = await http.post("/v1/vms?wait=running", json={"kernel": "tiny", "name": "web"})
    assert made.status_code == 201, made.text
    moments = random.Random(7)  # noqa: S311
    for number in range(2):

        async def live(name: str = f"s{number}") -> None:
            with contextlib.suppress(httpx.TransportError):
                await http.post("/v1/vms/web/snapshots?wait=ready", json={"name": name})
                await http.post(f"/v1/snapshots/{name}/instantiate", json={"count": 2})
                await http.delete(f"/v1/snapshots/{name}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live)
            await anyio.sleep(moments.uniform(0, 0.06))
            manager.kill()
        await manager.start(http)

    async def all_is_done() -> bool:
        snapshots = (await http.get("/v1/snapshots")).json()["items"]
        vms = (await http.get("/v1/vms")).json()["items"]
        return {each["state"] for each in snapshots} <= {"ready"} and {
            each["state"] for each in vms
        } == {"running"}

    await until("all is done", all_is_done)
    snapshots = (await http.get("/v1/snapshots")).json()["items"]
    assert agent.shelf.held.keys() == {each["id"] for each in snapshots}, "none without a row"
    assert len(set(agent.shelf.captures)) == len(agent.shelf.captures), "none was taken twice"
    vms = (await http.get("/v1/vms")).json()["items"]
    assert agent.machines.keys() == {each["id"] for each in vms}
    assert all(boots == {1} for boots in agent.boots.values())


async def test_it_stops_in_time_and_prints_nothing(
    process: tuple[Process, httpx.AsyncClient],
) -> None:
    manager, http = process
    assert manager.popen is not None
    assert (await http.get("/v1/vms")).json() == {"items": [], "next_cursor": None}
    begun = time.monotonic()
    manager.popen.send_signal(signal.SIGTERM)
    out, _ = manager.popen.communicate(timeout=10)
    assert (out, time.monotonic() - begun < 3) == (b"", True)


async def test_the_console_is_relayed(process: tuple[Process, httpx.AsyncClient]) -> None:
    manager, http = process
    created = await http.post("/v1/vms?wait=running", json={"kernel": "tiny", "name": "talk"})
    assert created.status_code == 201, created.text
    address: Any = f"ws://{manager.bind}/v1/vms/talk/console"
    headers = {"authorization": http.headers["authorization"]}
    async with connect(address, additional_headers=headers) as socket:
        await socket.send(b"hello")
        assert await socket.recv() == b"echo hello"
