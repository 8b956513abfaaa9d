"""Snapshots: taken, listed, renamed, deleted, by a manager that may be cut off anywhere."""

from typing import Any

import anyio
import pytest
from fastapi.responses import JSONResponse

from nexus.manager.config import Settings
from tests.manager.agent_double import AgentDouble, refusing
from tests.manager.core import Manager, running, until

pytestmark = pytest.mark.anyio

TRACKED = {"track_dirty_pages": True}


async def take(
    manager: Manager, vm: str = "web", query: str = "?wait=ready", **body: Any
) -> dict[str, Any]:
    answer = await manager.http.post(f"/v1/vms/{vm}/snapshots{query}", json=body)
    assert answer.status_code == 201, answer.text
    item: dict[str, Any] = answer.json()["item"]
    return item


async def shown(manager: Manager, ref: str) -> dict[str, Any]:
    answer = await manager.http.get(f"/v1/snapshots/{ref}")
    assert answer.status_code == 200, answer.text
    item: dict[str, Any] = answer.json()["item"]
    return item


async def refused(manager: Manager, method: str, url: str, **body: Any) -> tuple[int, str, str]:
    answer = await manager.http.request(method, url, json=body if method != "DELETE" else None)
    assert answer.status_code >= 400, answer.text
    assert answer.json()["suggestion"]
    return answer.status_code, answer.json()["error"], answer.json()["message"]


async def names(manager: Manager, query: str = "") -> list[str]:
    answer = await manager.http.get(f"/v1/snapshots{query}")
    return [item["name"] for item in answer.json()["items"]]


async def becomes(manager: Manager, ref: str, state: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        item = await shown(manager, ref)
        return item if item["state"] == state else None

    return await until(f"{ref} is {state}", look)


async def test_a_life(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="web", tags={"team": "blue"})
    taken = await take(manager, name="base")
    assert (taken["state"], taken["vm_id"], taken["vm_name"]) == ("ready", vm["id"], "web")
    assert (taken["pause_ms"], taken["kind"], taken["engine"]) == (12.5, "full", "firecracker")
    assert [file["name"] for file in taken["files"]] == ["mem", "rootfs.ext4"]
    assert (taken["kernel"]["name"], taken["rootfs"]["name"]) == ("debian-cloud", "busybox")
    assert (await manager.reasons("web"))[-2:] == ["snapshot_requested", "snapshotted"]
    assert agent.shelf.captures == [taken["id"]]

    made_up = await take(manager)
    assert made_up["name"].startswith("web-2")
    assert await refused(manager, "POST", "/v1/vms/web/snapshots", name="base") == (
        409,
        "name_taken",
        "there is a snapshot named 'base' already",
    )
    first = (await manager.http.get("/v1/snapshots?limit=1")).json()
    rest = (await manager.http.get(f"/v1/snapshots?cursor={first['next_cursor']}")).json()
    assert [each["id"] for each in first["items"] + rest["items"]] == [taken["id"], made_up["id"]]
    for query in ("?vm=web", f"?vm={vm['id']}", "?state=ready", "?name=", ""):
        assert len(await names(manager, query.replace("?name=", "?name=b"))) == (
            1 if query == "?name=" else 2
        )
    assert await names(manager, "?state=error") == await names(manager, "?vm=other") == []
    of_vm = (await manager.http.get("/v1/vms/web/snapshots")).json()["items"]
    assert [each["name"] for each in of_vm] == ["base", made_up["name"]]

    got = await manager.http.get("/v1/snapshots/base")
    renamed = await manager.http.patch(
        "/v1/snapshots/base", json={"name": "gold"}, headers={"if-match": got.headers["etag"]}
    )
    assert (renamed.status_code, renamed.json()["item"]["name"]) == (200, "gold")
    stale = {"if-match": got.headers["etag"]}
    again = await manager.http.patch("/v1/snapshots/gold", json={"name": "x"}, headers=stale)
    assert again.status_code == 412
    assert (await refused(manager, "PATCH", "/v1/snapshots/gold", name=made_up["name"]))[:2] == (
        409,
        "name_taken",
    )

    await manager.http.delete("/v1/vms/web?wait=deleted")
    assert (await shown(manager, "gold"))["vm_id"] == vm["id"], "it outlives its VM"
    assert await names(manager, "?vm=web") == ["gold", made_up["name"]]
    in_use = await manager.http.delete("/v1/images/busybox")
    assert (in_use.status_code, "gold" in in_use.json()["message"]) == (409, True)
    for ref in ("gold", made_up["id"]):
        assert (await manager.http.delete(f"/v1/snapshots/{ref}?wait=deleted")).status_code == 200
    assert (await names(manager), agent.shelf.held) == ([], {})
    assert (await manager.http.get("/v1/snapshots/gold")).status_code == 404


async def test_one_at_a_time_and_never_twice(manager: Manager, agent: AgentDouble) -> None:
    await manager.create(name="web")
    agent.shelf.hold = anyio.Event()
    first = await take(manager, query="", name="one")
    assert first["state"] == "requested"
    code, error, message = await refused(manager, "POST", "/v1/vms/web/snapshots", name="two")
    assert (code, error, "'one'" in message) == (409, "in_use", True)
    not_ready = await manager.http.post("/v1/vms/web/restore", json={"snapshot": "one"})
    assert (not_ready.status_code, not_ready.json()["error"]) == (409, "invalid_state")
    agent.shelf.lose_answers = 1
    agent.shelf.hold.set()
    assert (await becomes(manager, "one", "ready"))["error"] is None
    assert agent.shelf.captures == [first["id"]]


async def test_the_next_manager_finishes_it(settings: Settings, agent: AgentDouble) -> None:
    agent.shelf.hold = anyio.Event()
    async with running(settings) as manager:
        await manager.add_defaults()
        await manager.create(name="web")
        taken = await take(manager, query="", name="one")
        await agent.shelf.begun.wait()
    agent.shelf.hold.set()
    async with running(settings) as manager:
        await becomes(manager, "one", "ready")
        assert agent.shelf.captures == [taken["id"]]


async def test_what_cannot_be_snapshotted(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web", start=False, query="?wait=configured")
    code, error, message = await refused(manager, "POST", "/v1/vms/web/snapshots")
    assert (code, error, "configured" in message) == (409, "invalid_state", True)
    await manager.http.post("/v1/volumes", json={"name": "data", "size_mib": 8})
    await manager.create(name="owner", drives=[{"name": "db", "volume": "data"}])
    assert "volume 'data'" in (await refused(manager, "POST", "/v1/vms/owner/snapshots"))[2]
    assert (await refused(manager, "POST", "/v1/vms/nobody/snapshots"))[0] == 404
    await manager.create(name="plain")
    said = await refused(manager, "POST", "/v1/vms/plain/snapshots", kind="diff")
    assert (said[0], "keep track" in said[2]) == (409, True)
    await manager.create(name="tracked", **TRACKED)
    said = await refused(manager, "POST", "/v1/vms/tracked/snapshots", kind="diff")
    assert (said[0], "no snapshot of this boot" in said[2]) == (409, True)
    assert agent.shelf.captures == []


async def test_snapshots_count_against_the_quota(
    sqlite_manager: Manager, agent: AgentDouble
) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    url = "/v1/projects/default/quota"
    await manager.create(name="small", mem_mib=64, rootfs_size_mib=8)
    await manager.http.put(url, json={"disk_mib": 8 + 2 * 72})
    await take(manager, "small", name="one")
    await take(manager, "small", name="two")
    code, error, message = await refused(manager, "POST", "/v1/vms/small/snapshots", name="three")
    assert (code, error, "disk" in message) == (409, "quota_exceeded", True)
    assert (await manager.http.get(url)).json()["item"]["used"]["disk_mib"] == 8 + 2 * 72
    await manager.http.delete("/v1/snapshots/one?wait=deleted")
    await take(manager, "small", name="three")


async def test_what_a_host_refuses(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web")
    body = {
        "error": "vmm_fault",
        "message": "the VMM takes no snapshot",
        "fault_message": "no space left",
        "suggestion": "df -h",
        "status": 409,
        "request_id": "r",
    }
    agent.shelf.faults.append(lambda: JSONResponse(body, 409))
    failed = await take(manager, name="bad")
    assert failed["state"] == "error"
    assert failed["error"] == {
        "stage": "capture",
        "message": "the VMM takes no snapshot",
        "fault_message": "no space left",
        "suggestion": "df -h",
    }
    assert (await manager.reasons("web"))[-1] == "snapshot_failed"
    said = await refused(manager, "POST", "/v1/snapshots/bad/instantiate")
    assert (said[1], "no space" in said[2] or "takes no" in said[2]) == ("invalid_state", True)
    agent.shelf.faults.append(refusing())
    assert (await manager.http.delete("/v1/snapshots/bad?wait=deleted")).status_code == 200
    assert await names(manager) == []

    await take(manager, name="base")
    refusal = {"error": "in_use", "message": "a reader has it", "status": 409, "request_id": "r"}
    agent.shelf.faults.append(lambda: JSONResponse(refusal, 409))
    kept = await manager.http.delete("/v1/snapshots/base?wait=deleted")
    assert (kept.status_code, "a reader has it" in kept.json()["message"]) == (409, True)
    back = await shown(manager, "base")
    assert (back["state"], back["error"]["stage"]) == ("ready", "delete")


async def test_chains(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web", **TRACKED)
    base = await take(manager, name="base")
    diff = await take(manager, name="diff", kind="diff")
    assert (diff["parent_id"], diff["needs_parent"]) == (base["id"], True)
    code, error, message = await refused(manager, "DELETE", "/v1/snapshots/base")
    assert (code, error, "the diff diff" in message) == (409, "in_use", True)
    agent.shelf.merge(diff["id"])
    assert (await manager.http.delete("/v1/snapshots/base?wait=deleted")).status_code == 200
    merged = await shown(manager, "diff")
    assert (merged["parent_id"], merged["needs_parent"]) == (base["id"], False)
    await take(manager, name="third", kind="diff")
    assert (await refused(manager, "DELETE", "/v1/snapshots/diff"))[1] == "in_use"
    gone = await manager.http.delete("/v1/snapshots/diff?wait=deleted&merge=true")
    assert gone.status_code == 200, gone.text
    third = await shown(manager, "third")
    assert not third["needs_parent"]
    # A clone's first diff is to what it was loaded from.
    cloned = "/v1/snapshots/third/instantiate?wait=running"
    assert (await manager.http.post(cloned, json={"name": "twin"})).status_code == 201
    of_clone = await take(manager, "twin", name="twins", kind="diff")
    assert (of_clone["vm_name"], of_clone["parent_id"]) == ("twin", third["id"])


async def test_deleted_while_it_is_taken(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web")
    agent.shelf.hold = anyio.Event()
    await take(manager, query="", name="one")
    await agent.shelf.begun.wait()
    assert (await manager.http.delete("/v1/snapshots/one")).status_code == 200
    agent.shelf.hold.set()

    async def is_gone() -> bool:
        return not await names(manager)

    await until("it is gone", is_gone)
    assert agent.shelf.held == {}

    agent.shelf.hold, agent.shelf.begun = anyio.Event(), anyio.Event()
    await take(manager, query="", name="late")
    await agent.shelf.begun.wait()
    await manager.http.delete("/v1/vms/web?wait=deleted")
    agent.shelf.hold.set()
    late = await becomes(manager, "late", "error")
    assert "no such machine" in late["error"]["message"]
