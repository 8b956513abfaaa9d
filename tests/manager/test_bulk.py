"""One action on many VMs, answered for each of them."""

from typing import Any

import pytest

from nexus.ids import new_id
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager

pytestmark = pytest.mark.anyio


async def act(manager: Manager, query: str = "", **body: Any) -> list[dict[str, Any]]:
    answer = await manager.http.post(f"/v1/vms/actions{query}", json=body)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def make(manager: Manager, name: str, count: int, **body: Any) -> list[str]:
    body = {"name": name, "count": count, **body}
    answer = await manager.http.post("/v1/vms?wait=running", json=body)
    assert answer.status_code == 201, answer.text
    return [vm["id"] for vm in answer.json()["items"]]


async def test_a_whole_life_by_ids(manager: Manager, agent: AgentDouble) -> None:
    ids = await make(manager, "job", 5)
    for action, state in (
        ("pause", "paused"),
        ("resume", "running"),
        ("reboot", "running"),
        ("stop", "stopped"),
        ("start", "running"),
        ("delete", "deleted"),
    ):
        items = await act(manager, f"?wait={state}", action=action, ids=ids)
        expected = [
            {"id": vm_id, "name": f"job-{number}", "ok": True}
            for number, vm_id in enumerate(ids, start=1)
        ]
        assert items == expected
    assert not agent.machines
    assert all(agent.boots[vm_id] == {1, 2, 3} for vm_id in ids)


async def test_each_vm_has_its_own_answer(manager: Manager) -> None:
    await make(manager, "job", 2)
    await manager.create("?wait=configured", name="idle", start=False)
    nobody = new_id()
    items = await act(manager, action="pause", ids=["job-1", "idle", nobody, "job-2", "job-1"])
    assert [(item["id"] == nobody or item["name"], item["ok"]) for item in items] == [
        ("job-1", True),
        ("idle", False),
        (True, False),
        ("job-2", True),
    ]
    assert items[1]["error"]["code"] == "invalid_state"
    assert items[1]["error"]["suggestion"] == "nexus start idle"
    assert items[2]["error"]["code"] == "not_found"
    await manager.becomes("job-2", "paused")


async def test_selectors(manager: Manager) -> None:
    await make(manager, "blue", 2, tags={"team": "blue", "tier": "a"})
    await make(manager, "red", 2, tags={"team": "red", "tier": "a"})
    items = await act(manager, "?wait=stopped", action="stop", selector={"team": "blue"})
    assert [item["name"] for item in items] == ["blue-1", "blue-2"]
    assert await act(manager, action="stop", selector={"team": "blue", "tier": "b"}) == []
    assert (await manager.vm("red-1"))["state"] == "running"
    items = await act(manager, "?wait=deleted", action="delete", selector={"tier": "a"})
    assert len(items) == 4


async def test_waiting_tells_who_did_not_get_there(manager: Manager, agent: AgentDouble) -> None:
    await make(manager, "job", 2)
    agent.push((await manager.vm("job-1"))["id"], state="stopped", exit_cause="guest_poweroff")
    await manager.becomes("job-1", "stopped")
    items = await act(manager, "?wait=running", action="resume", ids=["job-1", "job-2"])
    assert [item["ok"] for item in items] == [False, True]
    items = await act(manager, "?wait=paused&timeout_s=0.2", action="start", ids=["job-2"])
    assert items[0]["error"]["code"] == "invalid_state"


@pytest.mark.parametrize(
    "body",
    [
        {"action": "stop"},
        {"action": "stop", "ids": []},
        {"action": "stop", "selector": {}},
        {"action": "stop", "ids": ["a"], "selector": {"a": "b"}},
        {"action": "explode", "ids": ["a"]},
        {"action": "stop", "ids": ["../etc"]},
        {"action": "stop", "ids": ["a"] * 1001},
        {"action": "stop", "ids": ["a"], "stop_timeout_s": -1},
        {"action": "stop", "ids": ["a"], "force": "yes"},
        {"action": "stop", "ids": "a"},
    ],
)
async def test_bad_requests(manager: Manager, body: dict[str, Any]) -> None:
    answer = await manager.http.post("/v1/vms/actions", json=body)
    assert answer.status_code == 422
    assert answer.json()["message"]


async def test_the_same_key_does_it_once(manager: Manager) -> None:
    await make(manager, "job", 2)
    headers = {"idempotency-key": "k1"}
    body = {"action": "reboot", "ids": ["job-1", "job-2"]}
    first = await manager.http.post("/v1/vms/actions?wait=running", json=body, headers=headers)
    again = await manager.http.post("/v1/vms/actions?wait=running", json=body, headers=headers)
    assert (again.status_code, again.json()) == (200, first.json())
    assert (await manager.vm("job-1"))["boot"] == 2


async def test_reboot_of_one(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="one")
    answer = await manager.http.post("/v1/vms/one/reboot?wait=running&timeout_s=3")
    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert agent.boots[vm["id"]] == {1, 2}
    assert agent.puts[-1].stop_timeout_s == 3
    assert (await manager.reasons("one"))[-2:] == ["reboot_requested", "started"]
