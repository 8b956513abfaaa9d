"""Prebooted templates against an agent double: one boot a host, clones after that."""

from typing import Any

import pytest
from sqlalchemy import update

from nexus.api.vms import VmError
from nexus.manager.db.tables import HostRow
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, until
from tests.manager.test_templates import change, make, use

pytestmark = pytest.mark.anyio


async def preboots(manager: Manager) -> list[dict[str, Any]]:
    answer = await manager.http.get("/v1/templates/web/preboots")
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def comes_to(manager: Manager, state: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        found = await preboots(manager)
        return found[0] if [each["state"] for each in found] == [state] else None

    return await until(f"the prebooted VM is {state}", look)


async def snapshots(manager: Manager, query: str = "?internal=true") -> list[str]:
    items = (await manager.http.get(f"/v1/snapshots{query}")).json()["items"]
    return [item["id"] for item in items]


async def nothing_left(manager: Manager) -> bool:
    vms = (await manager.http.get("/v1/vms?name=preboot")).json()["items"]
    return not vms and not await snapshots(manager)


async def test_later_vms_are_clones(manager: Manager, agent: AgentDouble) -> None:
    await manager.add_image("kernel", "tiny")
    await make(manager, spec={"kernel": "tiny", "mem_mib": 32, "tags": {"t": "x"}}, preboot=True)
    first = (await use(manager, name="first"))["item"]
    assert (first["origin"], first["template"]["version"]) == (None, 1)
    ready = await comes_to(manager, "ready")
    assert (ready["host_id"], ready["message"]) == (agent.host_id, None)
    assert await snapshots(manager) == [ready["snapshot_id"]]
    assert await snapshots(manager, "") == []

    made = await use(manager, name="later", count=2, tags={"a": "b"}, restart_policy="always")
    for vm in made["items"]:
        assert (vm["state"], vm["origin"]["snapshot"]) == ("running", ready["snapshot_id"])
        assert (vm["tags"], vm["restart_policy"]) == ({"t": "x", "a": "b"}, "always")
        assert vm["template"]["name"] == "web"
        origin = agent.machines[vm["id"]].origin
        assert origin is not None
        assert (origin.snapshot, origin.boot) == (ready["snapshot_id"], 1)
    assert (await use(manager, name="larger", mem_mib=48))["item"]["origin"] is None
    assert len(await preboots(manager)) == 1

    await change(manager, vcpu=2)
    await until("the old one is gone", lambda: nothing_left(manager))
    assert (await use(manager, name="of-two"))["item"]["origin"] is None
    second = await comes_to(manager, "ready")
    assert (second["version"], second["snapshot_id"] != ready["snapshot_id"]) == (2, True)
    assert (await use(manager, name="old", version=1))["item"]["origin"] is None
    assert (await use(manager, name="new"))["item"]["origin"]["snapshot"] == second["snapshot_id"]
    assert (await manager.http.delete("/v1/templates/web")).status_code == 200
    await until("nothing is left", lambda: nothing_left(manager))


async def test_another_vmm_boots_again(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_image("kernel", "tiny")
    await make(manager, spec={"kernel": "tiny", "mem_mib": 32}, preboot=True)
    await use(manager, name="first")
    ready = await comes_to(manager, "ready")
    async with manager.runtime.db.write() as session:
        await session.execute(update(HostRow).values(engine_version="9.9"))
    assert (await use(manager, name="second"))["item"]["origin"] is None

    async def is_another() -> bool:
        found = await preboots(manager)
        if not found:
            await use(manager)
        return any(
            each["state"] == "ready" and each["snapshot_id"] != ready["snapshot_id"]
            for each in found
        )

    await until("one of the new VMM is there", is_another)


async def test_one_that_does_not_come_up(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_image("kernel", "tiny")
    await make(manager, spec={"kernel": "tiny", "mem_mib": 32}, preboot=True)
    agent.fails_with = VmError(stage="boot", message="no such kernel")
    answer = await manager.http.post("/v1/templates/web/instantiate", json={"name": "first"})
    assert answer.status_code == 201
    failed = await comes_to(manager, "failed")
    assert "no such kernel" in failed["message"]
    agent.fails_with = None
    assert (await use(manager, name="second"))["item"]["origin"] is None
    await until("nothing is left", lambda: nothing_left(manager))
    assert [each["state"] for each in await preboots(manager)] == ["failed"]
