"""Prebooted templates against an agent double: one boot a host, clones after that."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import select, update

from nexus.api.errors import InvalidState
from nexus.api.vms import VmError
from nexus.manager.db.tables import HostRow
from nexus.manager.db.template_tables import PrebootRow
from nexus.manager.pipelines import preboots as pipeline
from nexus.manager.services import preboots as service
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, running, settings_for, until
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


async def test_one_whose_capture_fails_is_tried_again(
    sqlite_manager: Manager, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = sqlite_manager
    monkeypatch.setattr(service, "AGAIN_AFTER", timedelta(0))
    await manager.add_image("kernel", "tiny")
    await make(manager, spec={"kernel": "tiny", "mem_mib": 32}, preboot=True)

    def full() -> None:
        raise InvalidState("the disk was full for a moment")

    agent.shelf.faults.append(full)
    await use(manager, name="first")
    failed = await comes_to(manager, "failed")
    assert "the disk was full for a moment" in failed["message"]
    await until("nothing is left", lambda: nothing_left(manager))
    await use(manager, name="second")
    ready = await comes_to(manager, "ready")
    assert await snapshots(manager) == [ready["snapshot_id"]]
    assert (await use(manager, name="third"))["item"]["origin"] is not None


async def test_a_new_version_while_one_fails(
    sqlite_manager: Manager, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for a look in this very moment is not overheard."""
    manager = sqlite_manager
    await manager.add_image("kernel", "tiny")
    await make(manager, spec={"kernel": "tiny", "mem_mib": 32}, preboot=True)
    fail = pipeline.PrebootPipeline._fail

    async def too_late(self: pipeline.PrebootPipeline, row: PrebootRow, message: str) -> None:
        await change(manager, vcpu=2)
        await fail(self, row, message)

    monkeypatch.setattr(pipeline.PrebootPipeline, "_fail", too_late)
    agent.fails_with = VmError(stage="boot", message="no such kernel")
    await manager.http.post("/v1/templates/web/instantiate", json={"name": "first"})
    await until("it is tried", lambda: preboots(manager))

    async def is_gone() -> bool:
        return not await preboots(manager)

    await until("that of the old version is gone", is_gone)


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


async def pool(manager: Manager) -> set[str]:
    """The ids of VMs that wait."""
    items = (await manager.http.get("/v1/vms?pooled=true&name=pool-")).json()["items"]
    return {item["id"] for item in items if item["state"] == "paused"}


async def test_vms_wait_in_a_pool_and_are_taken(
    manager: Manager, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "POOL_LOOK_S", 0.1)
    await manager.add_image("kernel", "tiny")
    spec = {"kernel": "tiny", "mem_mib": 32, "tags": {"t": "x"}}
    refused = await manager.http.post("/v1/templates", json={"name": "web", "pool": 1})
    assert (refused.status_code, "preboot" in refused.json()["message"]) == (422, True)
    await make(manager, spec=spec, preboot=True, pool=2)
    await use(manager, name="first")

    async def is_full() -> set[str] | None:
        found = await pool(manager)
        return found if len(found) == 2 else None

    waiting = await until("the pool is full", is_full)
    assert (await preboots(manager))[0]["pooled"] == 2
    listed = (await manager.http.get("/v1/vms")).json()["items"]
    assert [vm["name"] for vm in listed] == ["first"]

    taken = (await use(manager, name="taken", tags={"a": "b"}, ttl=600))["item"]
    assert taken["id"] in waiting
    assert (taken["state"], taken["name"], taken["boot"]) == ("running", "taken", 1)
    assert (taken["tags"], taken["template"]["version"]) == ({"t": "x", "a": "b"}, 1)
    assert taken["expires_at"] is not None
    machine = agent.machines[taken["id"]]
    assert (machine.name, machine.power, machine.boot) == ("taken", "running", 1)
    assert agent.boots[taken["id"]] == {1}
    assert (await manager.reasons("taken"))[-2:] == ["created", "started"]
    again = await manager.http.post("/v1/templates/web/instantiate", json={"name": "taken"})
    assert (again.status_code, again.json()["error"]) == (409, "name_taken")

    refilled = await until("it is full again", is_full)
    both = (await use(manager, name="both", count=2))["items"]
    assert {vm["id"] for vm in both} == refilled
    await until("it is full again", is_full)
    many = (await use(manager, name="many", count=3))["items"]
    assert all(vm["origin"] for vm in many)
    assert not {vm["id"] for vm in many} & await pool(manager)

    ended = next(iter(await until("it is full", is_full)))
    agent.push(ended, state="stopped", exit_cause="guest_poweroff")

    async def is_gone() -> bool:
        return (await manager.http.get(f"/v1/vms/{ended}")).status_code == 404

    await until("one that ended is taken out", is_gone)
    await until("another is in its place", is_full)
    await manager.http.delete("/v1/templates/web")
    await until("nothing waits any more", lambda: no_pool(manager))


async def test_a_diff_on_a_clone_keeps_nothing(
    sqlite_manager: Manager, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host makes it whole when the snapshot that the clone was loaded from goes."""
    manager = sqlite_manager
    monkeypatch.setattr(pipeline, "POOL_LOOK_S", 0.1)
    await manager.add_image("kernel", "tiny")
    spec = {"kernel": "tiny", "mem_mib": 32, "track_dirty_pages": True}
    await make(manager, spec=spec, preboot=True, pool=1)
    await use(manager, name="first")
    ready = await comes_to(manager, "ready")
    await until("one waits", lambda: pool(manager))
    taken = await pool(manager)
    await use(manager, name="clone")

    async def is_another() -> bool:
        return bool(await pool(manager) - taken)

    await until("another waits", is_another)
    body = {"name": "diff", "kind": "diff"}
    answer = await manager.http.post("/v1/vms/clone/snapshots?wait=ready", json=body)
    diff = answer.json()["item"]
    assert (diff["parent_id"], diff["needs_parent"]) == (ready["snapshot_id"], True)
    assert (await manager.http.delete("/v1/templates/web")).status_code == 200
    await until("nothing waits any more", lambda: no_pool(manager))

    async def is_alone() -> bool:
        return await snapshots(manager) == [diff["id"]]

    await until("only the diff is left", is_alone)
    assert (await manager.http.get("/v1/snapshots/diff")).json()["item"]["needs_parent"] is False


async def test_a_clone_without_its_disks_keeps_the_snapshot_alone(
    sqlite_manager: Manager, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose host did not take it might yet be started; the pool goes all the same."""
    manager = sqlite_manager
    monkeypatch.setattr(pipeline, "POOL_LOOK_S", 60.0)
    monkeypatch.setattr(pipeline, "LATER_S", 0.1)
    await manager.add_image("kernel", "tiny")
    await make(manager, spec={"kernel": "tiny", "mem_mib": 32}, preboot=True, pool=1)
    await use(manager, name="first")
    ready = await comes_to(manager, "ready")
    await until("one waits", lambda: pool(manager))

    def refuse() -> None:
        raise InvalidState("not now")

    agent.faults.append(refuse)
    await manager.http.post("/v1/templates/web/instantiate", json={"name": "many", "count": 2})

    async def failed() -> list[str]:
        items = (await manager.http.get("/v1/vms?name=many")).json()["items"]
        return [item["name"] for item in items if item["state"] == "error"]

    (lost,) = await until("one is refused", failed)
    assert (await manager.http.delete("/v1/templates/web")).status_code == 200
    await until("nothing waits any more", lambda: no_pool(manager))
    kept = await manager.http.get(f"/v1/snapshots/{ready['snapshot_id']}")
    assert kept.json()["item"]["state"] == "ready"
    await manager.http.delete(f"/v1/vms/{lost}?wait=deleted")
    await until("nothing is left", lambda: nothing_left(manager))


async def test_a_pool_is_as_full_as_there_is_room(tmp_path: Path) -> None:
    async with (
        AgentDouble(tmp_path / "agent.sock", mem_mib=128).serving() as agent,
        running(settings_for(tmp_path, f"sqlite:///{tmp_path}/nexus.db", agent.url)) as manager,
    ):
        await manager.add_image("kernel", "tiny")
        await make(manager, spec={"kernel": "tiny", "mem_mib": 32}, preboot=True, pool=5)
        await use(manager, name="first")

        async def is_full() -> bool:
            return len(await pool(manager)) == 3

        await until("as many wait as there is room for", is_full)
        assert (await preboots(manager))[0]["pooled"] == 3


async def test_nobody_waits_for_the_worker(
    postgres_url: str, tmp_path: Path, agent: AgentDouble
) -> None:
    """Who makes VMs holds all hosts, or those of a pool; a worker wants these while it holds the
    prebooted VM's row. So nobody but a worker may wait for that row."""
    async with running(settings_for(tmp_path, postgres_url, agent.url)) as manager:
        await manager.add_image("kernel", "tiny")
        await make(manager, spec={"kernel": "tiny", "mem_mib": 32}, preboot=True, pool=1)
        await use(manager, name="first")
        await until("one waits", lambda: pool(manager))
        async with manager.runtime.db.write() as session:
            await session.execute(select(PrebootRow).with_for_update())
            with anyio.fail_after(20):
                taken = await use(manager, name="taken")
        assert taken["item"]["origin"] is not None
        async with manager.runtime.db.write() as session:
            await session.execute(select(PrebootRow).with_for_update())
            async with manager.runtime.db.write() as another:
                await another.execute(update(HostRow).values(engine_version="9.9"))
            with anyio.fail_after(20):
                booted = await use(manager, name="booted", count=2)
        assert booted["item"]["origin"] is None


async def no_pool(manager: Manager) -> bool:
    answer = await manager.http.get("/v1/vms?pooled=true&name=pool-")
    return not answer.json()["items"]
