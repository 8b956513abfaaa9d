"""Renaming and tagging VMs, and changing only what one has seen: ETag and If-Match."""

import anyio
import httpx
import pytest
from sqlalchemy import select

from nexus.manager.db.journal_tables import AuditRow
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager

pytestmark = pytest.mark.anyio


async def patch(manager: Manager, ref: str, **body: object) -> httpx.Response:
    return await manager.http.patch(f"/v1/vms/{ref}", json=body)


async def test_a_rename_shows_in_events_and_audit(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="old", tags={"a": "1"})
    answer = await patch(manager, "old", name="new", tags={"b": "2", "c": ""})
    assert answer.status_code == 200, answer.text
    item = answer.json()["item"]
    assert (item["id"], item["name"], item["tags"]) == (vm["id"], "new", {"b": "2", "c": ""})
    assert item["generation"] == vm["generation"]
    assert (await manager.http.get("/v1/vms/old")).status_code == 404
    events = (await manager.http.get("/v1/vms/new/events")).json()["items"][-2:]
    assert [(event["reason"], event["message"], event["state"]) for event in events] == [
        ("renamed", "renamed from old to new", "running"),
        ("tags_changed", "tags were a=1, are b=2, c=", "running"),
    ]
    async with manager.runtime.db.read() as session:
        query = select(AuditRow).where(AuditRow.action == "vm.update")
        (row,) = (await session.scalars(query)).all()
    assert (row.target, row.result) == (vm["id"], "ok")
    assert row.before == {"name": "old", "tags": {"a": "1"}}
    assert row.after == {"name": "new", "tags": {"b": "2", "c": ""}}


async def test_the_guest_is_renamed_at_its_next_start(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="old")
    await patch(manager, "old", name="new")
    assert agent.machines[vm["id"]].name == "old"
    await manager.http.post("/v1/vms/new/stop?wait=stopped")
    await manager.http.post("/v1/vms/new/start?wait=running")
    assert agent.machines[vm["id"]].name == "new"


async def test_what_is_left_out_stays(manager: Manager) -> None:
    vm = await manager.create(name="one", tags={"a": "1"})
    assert (await patch(manager, "one")).json()["item"] == await manager.vm("one")
    assert (await patch(manager, "one", name="one")).json()["item"] == await manager.vm("one")
    assert (await patch(manager, "one", tags={})).json()["item"]["tags"] == {}
    assert (await patch(manager, "one", name="two")).json()["item"]["name"] == "two"
    assert (await manager.http.get("/v1/vms?tag=a")).json()["items"] == []
    assert [event for event in await manager.reasons(vm["id"]) if "_" in event] == ["tags_changed"]


async def test_a_name_that_is_taken_is_refused(manager: Manager) -> None:
    await manager.create(name="one")
    await manager.create(name="two")
    answer = await patch(manager, "two", name="one")
    assert (answer.status_code, answer.json()["error"]) == (409, "name_taken")
    assert (await patch(manager, "nobody", name="x")).status_code == 404
    assert (await patch(manager, "two", name="Two")).status_code == 422
    assert (await patch(manager, "two", state="running")).status_code == 422


async def test_of_many_renames_to_one_name_one_wins(manager: Manager) -> None:
    for number in range(8):
        await manager.create("", name=f"vm-{number}", start=False)
    statuses: list[int] = []

    async def rename(number: int) -> None:
        statuses.append((await patch(manager, f"vm-{number}", name="it")).status_code)

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(rename, number)
    assert sorted(statuses) == [200] + [409] * 7


async def test_an_etag_changes_with_the_thing_and_only_then(manager: Manager) -> None:
    await manager.create(name="one")
    first, again = [(await manager.http.get("/v1/vms/one")).headers["etag"] for _ in range(2)]
    assert first == again
    answer = await patch(manager, "one", tags={"a": "1"})
    assert answer.headers["etag"] != first
    assert (await manager.http.get("/v1/vms/one")).headers["etag"] == answer.headers["etag"]
    await manager.http.post("/v1/vms/one/pause?wait=paused")
    assert (await manager.http.get("/v1/vms/one")).headers["etag"] != answer.headers["etag"]


@pytest.mark.parametrize("path", ["/v1/vms/one", "/v1/images/busybox"])
async def test_a_reader_that_has_it_gets_304(manager: Manager, path: str) -> None:
    await manager.create(name="one")
    etag = (await manager.http.get(path)).headers["etag"]
    for seen in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = await manager.http.get(path, headers={"if-none-match": seen})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    answer = await manager.http.get(path, headers={"if-none-match": '"other"'})
    assert (answer.status_code, answer.headers["etag"]) == (200, etag)
    assert (await manager.http.get(path, headers={"if-none-match": "x"})).status_code == 422


CHANGES = [
    ("PATCH", ""),
    ("POST", "/pause"),
    ("POST", "/stop"),
    ("POST", "/start"),
    ("POST", "/resume"),
    ("DELETE", ""),
]


@pytest.mark.parametrize(("method", "path"), CHANGES)
async def test_a_change_of_something_seen_otherwise_is_refused(
    manager: Manager, method: str, path: str
) -> None:
    await manager.create(name="one")
    url = f"/v1/vms/one{path}"
    body = {"tags": {"b": "2"}} if method == "PATCH" else None
    stale = (await manager.http.get("/v1/vms/one")).headers["etag"]
    now = (await patch(manager, "one", tags={"a": "1"})).headers["etag"]
    before = await manager.vm("one")
    for seen in (stale, f"W/{now}", '"x", "y"'):
        refused = await manager.http.request(method, url, json=body, headers={"if-match": seen})
        assert (refused.status_code, refused.json()["error"]) == (412, "precondition_failed")
        assert now in refused.json()["message"]
        assert "read it again" in refused.json()["suggestion"]
    assert await manager.vm("one") == before
    given = {"if-match": f"{stale}, {now}"}
    assert (await manager.http.request(method, url, json=body, headers=given)).status_code == 200


async def test_of_changes_at_once_with_one_etag_one_wins(manager: Manager) -> None:
    await manager.create(name="one")
    etag = (await manager.http.get("/v1/vms/one")).headers["etag"]
    statuses: list[int] = []

    async def change(number: int) -> None:
        body = {"tags": {"number": str(number)}}
        answer = await manager.http.patch("/v1/vms/one", json=body, headers={"if-match": etag})
        statuses.append(answer.status_code)

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(change, number)
    assert sorted(statuses) == [200] + [412] * 7


async def test_an_image_is_deleted_as_it_was_seen(manager: Manager) -> None:
    await manager.add_image("rootfs", "mine")
    etag = (await manager.http.get("/v1/images/mine")).headers["etag"]
    refused = await manager.http.delete("/v1/images/mine", headers={"if-match": '"x"'})
    assert refused.status_code == 412
    answer = await manager.http.delete("/v1/images/mine", headers={"if-match": etag})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/v1/vms", "/v1/vms/actions", "/v1/volumes", "/v1/templates"])
async def test_what_names_nothing_cannot_be_compared(sqlite_manager: Manager, path: str) -> None:
    bodies = {
        "/v1/vms/actions": {"action": "pause", "ids": ["web"]},
        "/v1/volumes": {"name": "data", "size_mib": 1},
    }
    body = bodies.get(path, {"name": "web"})
    answer = await sqlite_manager.http.post(path, json=body, headers={"if-match": "*"})
    assert (answer.status_code, answer.json()["error"]) == (400, "bad_request")
