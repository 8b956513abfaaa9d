"""``Idempotency-Key``: what is sent again is answered again, whatever happens in between."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import FastAPI, Request
from sqlalchemy import func, select, update

from nexus.api.errors import HostUnreachable
from nexus.ids import new_id
from nexus.manager import keys
from nexus.manager.app import create_app
from nexus.manager.config import Settings
from nexus.manager.db.journal_tables import AuditRow, IdempotencyRow
from nexus.manager.db.tables import TokenRow, VmRow
from nexus.manager.runtime import caller_of
from nexus.manager.security import Principal, declared, require
from nexus.manager.uow import change
from nexus.manager.verify import hash_secret, make_token, parse
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, running, settings_for, until

pytestmark = pytest.mark.anyio

ANYTHING: dict[str, Any] = {}
SAMPLES: dict[str, Any] = {
    "/v1/vms": {"name": "sample-{n}"},
    "/v1/vms/{ref}/start": ANYTHING,
    "/v1/vms/{ref}/stop": ANYTHING,
    "/v1/vms/{ref}/pause": ANYTHING,
    "/v1/vms/{ref}/resume": ANYTHING,
    "/v1/vms/{ref}/reboot": ANYTHING,
    "/v1/vms/actions": {"action": "pause", "ids": ["subject", "nobody-{n}"]},
    "/v1/images": {"kind": "rootfs", "name": "image-{n}", "host_path": "disk"},
    "/v1/images/builds": {"recipe": "busybox"},
    "/v1/images/uploads": {"kind": "rootfs", "name": "upload-{n}"},
    "/v1/images/uploads/{upload_id}/complete": ANYTHING,
    "/v1/networks": {"name": "net-{n}"},
    "/v1/volumes": {"name": "vol-{n}", "size_mib": 8},
    "/v1/templates": {"name": "template-{n}"},
    "/v1/templates/{ref}/instantiate": {"name": "of-it-{n}"},
    "/v1/vms/{ref}/snapshots": {"name": "snap-{n}"},
    "/v1/vms/{ref}/restore": {"snapshot": "subject"},
    "/v1/snapshots/{ref}/instantiate": {"name": "clone-{n}"},
    "/v1/templates/{ref}/rollouts": {"steady_s": "{n}"},
    "/v1/rollouts/{rollout_id}/halt": ANYTHING,
    "/v1/rollouts/{rollout_id}/resume": ANYTHING,
    "/v1/rollouts/{rollout_id}/cancel": ANYTHING,
    "/v1/rollouts/{rollout_id}/rollback": ANYTHING,
    "/v1/volumes/{ref}/attach": {"vm": "subject", "name": "d{n}", "restart": True},
    "/v1/volumes/{ref}/detach": ANYTHING,
    "/v1/volumes/{ref}/snapshot": {"name": "copy-{n}"},
    "/v1/vms/{ref}/forwards": {"host_port": 8080, "guest_port": "{n}"},
}
"""A body for every POST route that must succeed on a VM that runs. New routes add theirs."""


ELSEWHERE = {"/v1/vms/{ref}/exec", "/v1/vms/{ref}/files/mkdir", "/v1/snapshots/import"}
"""These need a guest: see test_exec.py. An import is a stream that no key can hold: see
test_snapshot_archives.py."""


async def post(
    manager: Manager, path: str, key: str | None, body: Any = ANYTHING, **headers: str
) -> httpx.Response:
    if key is not None:
        headers["idempotency-key"] = key
    return await manager.http.post(path, json=body, headers=headers)


def replayed(answer: httpx.Response) -> bool:
    return answer.headers.get("idempotency-replayed") == "true"


def _app(manager: Manager) -> FastAPI:
    transport = manager.http._transport
    assert isinstance(transport, httpx.ASGITransport)
    assert isinstance(transport.app, FastAPI)
    return transport.app


async def count(manager: Manager, table: Any, *conditions: Any) -> int:
    async with manager.runtime.db.read() as session:
        query = select(func.count()).select_from(table).where(*conditions)
        return int(await session.scalar(query) or 0)


def post_routes() -> list[str]:
    app = create_app(Settings.from_env({"NEXUS_DATA_DIR": "/nonexistent"}))
    return sorted(path for path, methods, _ in declared(app) if "POST" in methods)


def test_every_post_route_has_a_sample() -> None:
    assert sorted({*SAMPLES, *ELSEWHERE}) == post_routes(), "say in SAMPLES what a good request is"


@pytest.mark.parametrize("route", sorted(SAMPLES))
async def test_every_post_route_honours_the_key(
    manager: Manager, settings: Settings, route: str
) -> None:
    sample = SAMPLES[route]
    settings.image_root.mkdir(exist_ok=True)
    (settings.image_root / "disk").write_bytes(b"a disk" * 100)
    vm = await manager.create(name="subject")
    await manager.http.post("/v1/templates", json={"name": "subject"})
    if "snapshots" in route or "restore" in route:
        taken = "/v1/vms/subject/snapshots?wait=ready"
        await manager.http.post(taken, json={"name": "subject"})
    await manager.http.post("/v1/volumes", json={"name": "subject", "size_mib": 8})
    is_vms = route.startswith("/v1/vms")
    path = route.replace("{ref}", vm["id"] if is_vms else "subject")
    if "rollouts" in path:
        await manager.http.post("/v1/templates/subject/instantiate?wait=running", json={})
    if "{rollout_id}" in path:
        made = await manager.http.post("/v1/templates/subject/rollouts", json={"steady_s": 600})
        path = path.replace("{rollout_id}", made.json()["id"])
    if "{upload_id}" in path:
        path = path.replace("{upload_id}", await _sent(manager))
    body, other = (
        json.loads(json.dumps(sample).replace('"{n}"', number).replace("{n}", number))
        for number in ("1", "2")
    )
    first = await post(manager, path, "k", body, **{"x-request-id": "the-first"})
    assert first.status_code in (200, 201), first.text
    assert not replayed(first)
    done = await count(manager, AuditRow, AuditRow.actor != "system")
    again = await post(manager, path, "k", body)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert replayed(again)
    assert await count(manager, AuditRow, AuditRow.actor != "system") == done
    for changed, where in ((other, path), (body, f"{path}?x=y"), (body, f"{path}/other")):
        if (changed, where) == (body, path):
            continue
        refused = await post(manager, where, "k", changed)
        assert (refused.status_code, refused.json()["error"]) == (409, "idempotency_conflict")
        assert "the-first" in refused.json()["message"]
        assert str(datetime.now(UTC).year) in refused.json()["message"]
    assert await count(manager, IdempotencyRow) == 1


async def _sent(manager: Manager) -> str:
    """The id of an upload whose bytes are there."""
    begun = await manager.http.post("/v1/images/uploads", json={"kind": "rootfs", "name": "sent"})
    headers = {"content-type": "application/octet-stream", "upload-offset": "0"}
    url = f"/v1/images/uploads/{begun.json()['id']}"
    sent = await manager.http.patch(url, content=b"a disk" * 100, headers=headers)
    assert sent.status_code == 200, sent.text
    return str(begun.json()["id"])


async def test_many_at_once_make_one_vm(manager: Manager) -> None:
    answers: list[httpx.Response] = []

    async def send() -> None:
        answers.append(await post(manager, "/v1/vms?wait=running", "k", {"mem_mib": 32}))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(send)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["item"]["state"] == "running"
    assert sorted(map(replayed, answers)) == [False] + [True] * 19
    assert await count(manager, VmRow) == 1


async def test_the_second_waits_for_the_first(manager: Manager, agent: AgentDouble) -> None:
    agent.hold = anyio.Event()
    answers: list[httpx.Response] = []

    async def send() -> None:
        answers.append(await post(manager, "/v1/vms?wait=running", "k", {"name": "slow"}))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await until("the first has made its VM", lambda: count(manager, VmRow))
        tasks.start_soon(send)
        conflict = await post(manager, "/v1/vms?wait=running", "k", {"name": "other"})
        assert (conflict.status_code, conflict.json()["error"]) == (409, "idempotency_conflict")
        agent.hold.set()
    assert [answer.json()["item"]["state"] for answer in answers] == ["running"] * 2


async def test_refusals_are_not_kept(manager: Manager) -> None:
    await manager.create(name="taken")
    body = {"name": "taken", "mem_mib": 32}
    assert (await post(manager, "/v1/vms", "k", body)).json()["error"] == "name_taken"
    assert (await post(manager, "/v1/vms", "k", {"name": "A"})).status_code == 422
    await manager.http.delete("/v1/vms/taken?wait=deleted")
    made = await post(manager, "/v1/vms", "k", body)
    assert (made.status_code, replayed(made)) == (201, False)


async def test_after_a_wait_that_was_too_short_the_same_vm_is_waited_for(
    manager: Manager, agent: AgentDouble
) -> None:
    agent.hold = anyio.Event()
    path, body = "/v1/vms?wait=running&timeout_s=0.05", {"name": "slow"}
    assert (await post(manager, path, "k", body)).status_code == 504
    assert (await post(manager, path, "k", body)).status_code == 504
    agent.hold.set()
    vm = await manager.becomes("slow", "running")
    answer = await post(manager, path, "k", body)
    assert (answer.status_code, replayed(answer)) == (201, True)
    assert (answer.json()["id"], answer.json()["item"]["state"]) == (vm["id"], "running")
    assert await manager.reasons("slow") == ["created", "configured", "started"]


async def test_many_vms_of_one_request_are_made_once(manager: Manager, agent: AgentDouble) -> None:
    agent.hold = anyio.Event()
    path, body = "/v1/vms?wait=running&timeout_s=0.05", {"name": "many", "count": 3}
    assert (await post(manager, path, "k", body)).status_code == 504
    agent.hold.set()
    for number in (1, 2, 3):
        await manager.becomes(f"many-{number}", "running")
    for _ in range(2):
        again = await post(manager, path, "k", body)
        assert (again.status_code, replayed(again)) == (201, True)
        assert [vm["state"] for vm in again.json()["items"]] == ["running"] * 3
    assert await count(manager, VmRow) == 3


async def test_an_action_is_done_once_though_its_answer_was_late(
    manager: Manager, agent: AgentDouble
) -> None:
    vm = await manager.create(name="one")
    await manager.http.post("/v1/vms/one/stop?wait=stopped")
    agent.hold = anyio.Event()
    path = "/v1/vms/one/start?wait=running&timeout_s=0.05"
    assert (await post(manager, path, "k")).status_code == 504
    agent.hold.set()
    await manager.becomes("one", "running")
    await manager.http.post("/v1/vms/one/stop?wait=stopped")
    again = await post(manager, path, "k")
    assert (again.status_code, again.json()["error"]) == (409, "invalid_state")
    assert agent.boots[vm["id"]] == {1, 2}


async def test_what_was_made_and_is_gone_is_still_the_answer(
    manager: Manager, agent: AgentDouble
) -> None:
    agent.hold = anyio.Event()
    path, body = "/v1/vms?wait=running&timeout_s=0.05", {"name": "brief"}
    assert (await post(manager, path, "k", body)).status_code == 504
    vm = await manager.vm("brief")
    await manager.http.delete("/v1/vms/brief?wait=deleted")
    again = await post(manager, path, "k", body)
    assert (again.status_code, again.json()["id"], replayed(again)) == (201, vm["id"], True)
    assert await count(manager, VmRow) == 0


async def test_keys_belong_to_a_token(manager: Manager) -> None:
    token = make_token()
    lookup_id, secret = parse(token) or ("", "")
    async with manager.runtime.db.write() as session:
        session.add(
            TokenRow(
                id=new_id(),
                project="default",
                name="ci",
                lookup_id=lookup_id,
                secret_hash=hash_secret(secret),
                role="operator",
                created_at=datetime.now(UTC),
            )
        )
    mine = await post(manager, "/v1/vms", "k", {})
    theirs = await post(manager, "/v1/vms", "k", {}, authorization=f"Bearer {token}")
    assert (mine.status_code, theirs.status_code) == (201, 201)
    assert mine.json()["id"] != theirs.json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "\t", "a\x7fb", "ä".encode()])
async def test_a_bad_key_is_refused(manager: Manager, key: str | bytes) -> None:
    answer = await manager.http.post("/v1/vms", json={}, headers={b"idempotency-key": key})
    assert (answer.status_code, answer.json()["error"]) == (422, "validation_failed")
    assert await count(manager, VmRow) == 0


async def test_two_keys_are_refused(manager: Manager) -> None:
    headers = [("idempotency-key", "a"), ("idempotency-key", "b")]
    assert (await manager.http.post("/v1/vms", json={}, headers=headers)).status_code == 422


async def test_a_key_counts_for_a_day(manager: Manager) -> None:
    first = await post(manager, "/v1/vms", "k", {})
    assert await keys.prune(manager.runtime.db, datetime.now(UTC)) == 0
    almost = datetime.now(UTC) + timedelta(hours=23, minutes=59)
    assert await keys.prune(manager.runtime.db, almost) == 0
    async with manager.runtime.db.write() as session:
        await session.execute(update(IdempotencyRow).values(expires_at=datetime.now(UTC)))
    # Too old, but not pruned yet: a request with another body takes the key over.
    second = await post(manager, "/v1/vms", "k", {"mem_mib": 32})
    assert second.json()["id"] != first.json()["id"]
    assert (await post(manager, "/v1/vms", "k", {"mem_mib": 32})).text == second.text
    assert await keys.prune(manager.runtime.db, datetime.now(UTC) + timedelta(hours=24)) == 1
    assert await count(manager, IdempotencyRow) == 0


async def test_what_must_not_be_done_twice_is_refused_when_its_end_is_unknown(
    manager: Manager,
) -> None:
    """As an exec: its change comes first, and what was begun then fails."""

    @_app(manager).post("/v1/vms/{ref}/once")
    async def once(
        ref: str, request: Request, principal: Annotated[Principal, require("vms:write")]
    ) -> dict[str, str]:
        caller = caller_of(request, principal, "vms:write")
        async with change(manager.runtime.db, caller, "test.once") as unit:
            unit.once = True
        if ref == "lost":
            raise HostUnreachable("it broke")
        return {"ran": ref}

    assert (await post(manager, "/v1/vms/lost/once", "k")).status_code == 502
    for _ in range(2):
        again = await post(manager, "/v1/vms/lost/once", "k")
        assert (again.status_code, again.json()["error"]) == (409, "idempotency_conflict")
        assert "how it ended is not known" in again.json()["message"]
        assert again.json()["request_id"] == again.headers["x-request-id"]
    for _ in range(2):
        assert (await post(manager, "/v1/vms/fine/once", "f")).json() == {"ran": "fine"}
    assert await count(manager, AuditRow, AuditRow.action == "test.once") == 2


def test_killed_before_any_statement_of_a_create(
    database_url: str, tmp_path: Path, repo: Path
) -> None:
    """Whatever statement was the last: the same request at the next manager makes one VM in all."""
    query = "?wait=running&timeout_s=0.01"
    command = [sys.executable, "-m", "tests.manager.killing", database_url, str(tmp_path), query]
    ended = subprocess.run(command, cwd=repo, capture_output=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    lives = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(lives) > 12
    assert {(life["vms"], life["addresses"], life["audits"]) for life in lives} == {(1, 1, 1)}
    assert all(life["replayed"] == (life["left"] == 1) for life in lives)
    assert {life["left"] for life in lives if life["killed"]} == {0, 1}
    assert [life["killed"] for life in lives] == [True] * (len(lives) - 1) + [False]


async def test_two_managers_make_one_vm(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory, agent: AgentDouble
) -> None:
    folder = tmp_path_factory.mktemp("shared")
    settings = settings_for(folder, postgres_url, agent.url)
    async with running(settings) as one, running(settings) as two:
        await one.add_defaults()
        for number in range(10):
            answers: list[httpx.Response] = []
            body = {"name": f"both-{number}", "mem_mib": 32}

            async def send(
                manager: Manager,
                key: str = f"k{number}",
                body: dict[str, Any] = body,
                answers: list[httpx.Response] = answers,
            ) -> None:
                answers.append(await post(manager, "/v1/vms?wait=running", key, body))

            async with anyio.create_task_group() as tasks:
                for manager in (one, two, one, two):
                    tasks.start_soon(send, manager)
            assert {answer.status_code for answer in answers} == {201}, answers[-1].text
            assert len({answer.json()["id"] for answer in answers}) == 1
            assert answers[-1].json()["item"]["state"] == "running"
        assert await count(one, VmRow) == 10
