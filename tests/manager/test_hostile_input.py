"""Hostile requests against a real manager over real HTTP: 4xx with the envelope, never 5xx."""

import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from nexus.api.errors import ERROR_CODES
from nexus.manager.app import create_app
from nexus.manager.config import Settings
from nexus.manager.db.session import Database
from nexus.manager.security import OPEN_PATHS, declared
from tests.manager.hostile import MALFORMED, Hostile, hostile_requests
from tests.manager.hostile_guests import guest_requests
from tests.manager.hostile_images import image_requests
from tests.manager.hostile_snapshots import snapshot_requests
from tests.manager.hostile_templates import template_requests
from tests.manager.hostile_vms import vm_requests
from tests.manager.hostile_volumes import volume_requests
from tests.manager.rows import host_row, image_row, vm_row

VICTIM = "victim"


@dataclass
class Manager:
    """A manager process under attack."""

    port: int
    data: Path
    log: Path
    token: str = ""
    pid: int = 0
    image_id: str = ""
    failures: list[str] = field(default_factory=list)

    def exchange(self, raw: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Sends bytes as they are on a new connection and reads one answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(raw)
            answer = http.client.HTTPResponse(connection, method=method)
            answer.begin()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read()

    def send(
        self, request: Hostile, *, token: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        return self.exchange(request.raw(token or self.token), request.method)

    def contents(self) -> dict[str, list[Any]]:
        """All rows of all tables but the audit, which notes refusals too."""
        with sqlite3.connect(f"file:{self.data / 'nexus.db'}?mode=ro", uri=True) as db:
            names = [
                row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")
            ]
            kept = [name for name in names if name not in ("audit", "sqlite_sequence")]
            return {name: db.execute(f'SELECT * FROM "{name}"').fetchall() for name in kept}  # noqa: S608 # names of tables


async def fill(settings: Settings) -> str:
    """A host that does not answer, an image and a settled VM: things that could be harmed."""
    db = Database(settings.database_url)
    await db.migrate()
    host, image = host_row(), image_row("disk")
    async with db.write() as session:
        session.add_all([host, image])
        await session.flush()
        session.add(vm_row(VICTIM, host, image))
    await db.close()
    return image.id


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    data = tmp_path_factory.mktemp("hostile")
    (data / "images").mkdir()
    (data / "images" / "disk").write_text("a disk")
    (data / "images" / "empty").touch()
    os.mkfifo(data / "images" / "fifo")
    (data / "images" / "out").symlink_to("/etc/passwd")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "NEXUS_DATA_DIR": str(data),
        "MANAGER_IMAGE_ROOT": str(data / "images"),
        "MANAGER_BIND": f"127.0.0.1:{port}",
        "NEXUS_AGENT_URL": f"unix:{data / 'no-agent.sock'}",
    }
    image_id = anyio.run(fill, Settings.from_env(environment))
    log = data / "manager.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "nexus.manager"], env=os.environ | environment, stderr=output
        )
    manager = Manager(port, data, log, pid=process.pid, image_id=image_id)
    try:
        wait_until_alive(manager, process)
        manager.token = (data / "admin.token").read_text().strip()
        yield manager
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_alive(manager: Manager, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, manager.log.read_text()
        try:
            status, _, _ = manager.exchange(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        except ConnectionRefusedError:
            continue
        assert status == 200
        return
    pytest.fail("the manager did not start")


def problem(status: int, headers: dict[str, str], body: bytes, method: str) -> str | None:
    """What is wrong with an answer to a hostile request."""
    if not 400 <= status < 500:
        return f"status {status}: {body[:200]!r}"
    if method == "HEAD":
        return None
    try:
        envelope = json.loads(body)
    except ValueError:
        return f"no JSON: {body[:200]!r}"
    missing = {"error", "message", "status", "request_id"} - envelope.keys()
    if missing or envelope["error"] not in ERROR_CODES or envelope["status"] != status:
        return f"no envelope: {body[:200]!r}"
    if headers.get("x-request-id") != envelope["request_id"]:
        return f"request id {headers.get('x-request-id')} is not {envelope['request_id']}"
    if "Traceback" in envelope["message"] or "nexus/manager" in envelope["message"]:
        return f"tells of its insides: {body[:200]!r}"
    return None


def test_hostile_requests_get_4xx_and_change_nothing(manager: Manager) -> None:
    requests = [
        *hostile_requests(VICTIM, manager.image_id),
        *vm_requests(VICTIM),
        *image_requests(),
        *guest_requests(VICTIM),
        *template_requests(),
        *snapshot_requests(VICTIM),
        *volume_requests(),
    ]
    assert len(requests) >= 400
    before = manager.contents()
    assert before["vms"]
    failures = []
    for request in requests:
        wrong = problem(*manager.send(request), request.method)
        if wrong:
            failures.append(f"{request}: {wrong}")
    assert not failures, "\n".join(failures)
    assert manager.contents() == before
    assert "unhandled error" not in manager.log.read_text()
    assert manager.token not in manager.log.read_text()


@pytest.mark.parametrize("raw", MALFORMED, ids=lambda raw: repr(raw[:40]))
def test_what_is_no_http_gets_the_envelope(manager: Manager, raw: bytes) -> None:
    before = manager.contents()
    answer = manager.exchange(raw.replace(b"TOKEN", manager.token.encode()))
    assert problem(*answer, "GET") is None
    assert manager.contents() == before


def test_an_endless_head_is_cut_off(manager: Manager) -> None:
    with socket.create_connection(("127.0.0.1", manager.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Endless: ")
        sent = 0
        try:
            while sent < 16 << 20:
                sent += connection.send(b"x" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 16 << 20


@pytest.mark.parametrize("token", ["nxs_wrong", None])
def test_a_refused_body_does_not_cost_the_answer(manager: Manager, token: str | None) -> None:
    """The sender does not read before it has sent everything, and then closes."""
    large = Hostile("POST", "/v1/vms", [("content-type", "application/json")], b" " * (6 << 20))
    for _ in range(20):
        answer = manager.send(large, token=token)
        assert problem(*answer, "POST") is None
        assert answer[0] == (401 if token else 413)


def test_every_route_is_closed_without_a_token(manager: Manager) -> None:
    settings = Settings.from_env({"NEXUS_DATA_DIR": str(manager.data / "other")})
    routes = [
        (path, method)
        for path, methods, _ in declared(create_app(settings))
        for method in (methods or {"GET"})
        if path not in OPEN_PATHS
    ]
    assert len(routes) >= 15
    for path, method in routes:
        filled = path.replace("{host_id}", manager.image_id).replace("{build_id}", manager.image_id)
        filled = filled.replace("{upload_id}", manager.image_id)
        filled = filled.replace("{forward_id}", manager.image_id)
        filled = filled.replace("{ref}", VICTIM).replace("{path:path}", "vm")
        filled = filled.replace("{sha256}", "0" * 64)
        filled = filled.replace("{project}", "default")
        filled = filled.replace("{name}", "data").replace("{iface}", "eth0")
        filled = filled.replace("{number}", "1").replace("{rollout_id}", manager.image_id)
        assert "{" not in filled
        for headers in ([], [("authorization", "Bearer nxs_wrong")]):
            request = Hostile(method, filled, headers, authenticated=False)
            status, answered, body = manager.send(request)
            assert (status, answered["www-authenticate"]) == (401, "Bearer"), (method, path)
            assert method == "HEAD" or json.loads(body)["error"] == "unauthenticated"


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/vms/", 404, "not_found"),
        ("PUT", "/v1/vms", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/images", 405, "method_not_allowed"),
    ],
)
def test_404_and_405_carry_the_envelope(
    manager: Manager, method: str, path: str, status: int, error: str
) -> None:
    answer = manager.send(Hostile(method, path))
    assert problem(*answer, method) is None
    assert (answer[0], json.loads(answer[2])["error"]) == (status, error)


def test_the_manager_still_serves(manager: Manager) -> None:
    status, _, body = manager.send(Hostile("GET", "/v1/vms"))
    assert status == 200
    assert [vm["name"] for vm in json.loads(body)["items"]] == [VICTIM]
