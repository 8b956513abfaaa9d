"""Rollouts against an agent double: batches, halts, and the way back."""

from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from sqlalchemy import event, select
from structlog.testing import capture_logs

from nexus.api.vms import VmError
from nexus.manager.db.tables import VmRow
from nexus.manager.db.template_tables import RolloutRow
from nexus.manager.pipelines import leases
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, running, settings_for, until
from tests.manager.test_templates import change, make, use

pytestmark = pytest.mark.anyio

QUICK = {"steady_s": 0, "timeout_s": 60}
BROKEN = VmError(stage="boot", message="no such kernel", suggestion="another kernel")


async def fleet(manager: Manager, count: int = 4, **spec: Any) -> list[dict[str, Any]]:
    """VMs of version 1 of the template ``web``, of which there is a version 2 by now."""
    await manager.add_image("kernel", "old")
    await manager.add_image("kernel", "new")
    await make(manager, spec={"kernel": "old", "mem_mib": 32, **spec})
    made = await use(manager, name="w", count=count)
    await change(manager, kernel="new", mem_mib=48, kernel_args="new=1")
    items: list[dict[str, Any]] = made["items"]
    return items


async def begin(manager: Manager, **options: Any) -> str:
    body = {**QUICK, **options}
    answer = await manager.http.post("/v1/templates/web/rollouts", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def act(manager: Manager, rollout: str, action: str, status: int = 200) -> None:
    answer = await manager.http.post(f"/v1/rollouts/{rollout}/{action}")
    assert answer.status_code == status, answer.text


async def comes_to(manager: Manager, rollout: str, state: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        item = (await manager.http.get(f"/v1/rollouts/{rollout}")).json()["item"]
        busy = item["vms"]["updating"] + item["vms"]["reverting"]
        return item if item["state"] == state and not busy else None

    return await until(f"the rollout is {state}", look)


async def vms_of(manager: Manager, rollout: str) -> list[tuple[str, str]]:
    items = (await manager.http.get(f"/v1/rollouts/{rollout}/vms")).json()["items"]
    return [(item["vm_name"], item["state"]) for item in items]


async def test_vms_move_in_batches_and_keep_what_is_theirs(
    manager: Manager, agent: AgentDouble
) -> None:
    before = await fleet(manager, drives=[{"name": "d", "size_mib": 8}])
    own = (await use(manager, name="own", version=1, mem_mib=40, tags={"t": "x"}))["item"]
    await manager.http.post("/v1/vms/w-1/stop?wait=stopped")
    await manager.http.post("/v1/vms/w-2/pause?wait=paused")
    agent.puts.clear()
    rollout = await begin(manager, batch=2)
    done = await comes_to(manager, rollout, "done")
    assert done["vms"] | {"done": 4, "skipped": 1} == done["vms"]
    assert await vms_of(manager, rollout) == [
        ("w-1", "done"),
        ("w-2", "skipped"),
        ("w-3", "done"),
        ("w-4", "done"),
        ("own", "done"),
    ]
    booted = [put.name for put in agent.puts if put.boot == 2]
    assert sorted(set(booted)) == ["own", "w-3", "w-4"]
    assert max(booted.index("w-3"), booted.index("w-4")) <= 2
    for old in [*before, own]:
        vm = await manager.vm(old["id"])
        changed = old["name"] != "w-2"
        assert vm["template"]["version"] == (2 if changed else 1)
        assert vm["kernel"]["name"] == ("new" if changed else "old")
        for field in ("name", "nics", "drives", "tags", "rootfs", "host_id"):
            assert vm[field] == old[field]
        if changed:
            assert vm["mem_mib"] == (40 if old["name"] == "own" else 48)
            machine = agent.machines[vm["id"]]
            assert (machine.kernel_args, machine.boot) == ("new=1", 1 if vm["name"] == "w-1" else 2)
    assert "rollout" in await manager.reasons("w-3")
    again = await comes_to(manager, await begin(manager, batch="50%"), "done")
    assert (again["vms"]["done"], agent.machines[before[2]["id"]].boot) == (4, 2)


async def test_it_halts_on_failures_and_goes_back(manager: Manager, agent: AgentDouble) -> None:
    await fleet(manager)
    agent.fails_with, agent.fails_only = BROKEN, "w-2"
    rollout = await begin(manager)
    halted = await comes_to(manager, rollout, "halted")
    assert halted["reason"] == "1 of 4 VMs failed, none may"
    items = (await manager.http.get(f"/v1/rollouts/{rollout}/vms")).json()["items"]
    assert [item["state"] for item in items] == ["done", "failed", "pending", "pending"]
    assert items[1]["message"] == "no such kernel"
    refused = await manager.http.post("/v1/templates/web/rollouts", json={})
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    assert (await manager.http.delete("/v1/templates/web")).json()["error"] == "in_use"

    await act(manager, rollout, "resume")
    again = await comes_to(manager, rollout, "halted")
    assert again["vms"]["failed"] == 1
    assert (await manager.vm("w-2"))["boot"] == 3
    agent.fails_with = None
    await act(manager, rollout, "rollback")
    ended = await comes_to(manager, rollout, "rolled_back")
    assert (ended["vms"]["reverted"], ended["vms"]["skipped"], ended["reason"]) == (2, 2, None)
    for name in ("w-1", "w-2", "w-3", "w-4"):
        vm = await manager.vm(name)
        shown = (vm["state"], vm["kernel"]["name"], vm["mem_mib"], vm["template"]["version"])
        assert shown == ("running", "old", 32, 1)
    await act(manager, rollout, "resume", 409)
    assert (await manager.http.delete("/v1/templates/web")).status_code == 200
    assert (await manager.http.get(f"/v1/rollouts/{rollout}")).status_code == 404


async def runs(manager: Manager, ref: str, boot: int) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        vm = await manager.vm(ref)
        return vm if (vm["state"], vm["boot"]) == ("running", boot) else None

    return await until(f"{ref} runs boot {boot}", look)


@pytest.mark.parametrize(("action", "kernel"), [("resume", "new"), ("rollback", "old")])
async def test_one_whose_guest_ended_boots_again(
    sqlite_manager: Manager, agent: AgentDouble, action: str, kernel: str
) -> None:
    """Nobody stopped it: it is to run, with the version it ended with or the one before."""
    manager = sqlite_manager
    await fleet(manager, 2)
    rollout = await begin(manager, steady_s=60)
    vm = await runs(manager, "w-1", 2)
    agent.push(vm["id"], state="stopped", exit_cause="guest_poweroff", pid=None)
    assert (await comes_to(manager, rollout, "halted"))["vms"]["failed"] == 1
    await act(manager, rollout, action)
    again = await runs(manager, "w-1", 3)
    assert again["kernel"]["name"] == kernel
    under_way = "updating" if action == "resume" else "reverting"
    assert ("w-1", under_way) in await vms_of(manager, rollout)


async def test_one_that_a_user_stopped_stays_off(
    sqlite_manager: Manager, agent: AgentDouble
) -> None:
    manager = sqlite_manager
    await fleet(manager, 2)
    rollout = await begin(manager, steady_s=60)
    await runs(manager, "w-1", 2)
    await manager.http.post("/v1/vms/w-1/stop?wait=stopped")
    await comes_to(manager, rollout, "halted")
    await act(manager, rollout, "resume")
    await runs(manager, "w-2", 2)
    assert (await vms_of(manager, rollout))[0] == ("w-1", "done")
    await act(manager, rollout, "rollback")
    await manager.http.delete("/v1/vms/w-2?wait=deleted")
    await comes_to(manager, rollout, "rolled_back")
    vm = await manager.vm("w-1")
    assert (vm["state"], vm["boot"], vm["kernel"]["name"]) == ("stopped", 2, "old")


async def test_halt_resume_and_cancel(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await fleet(manager, 3)
    agent.hold = anyio.Event()
    rollout = await begin(manager)

    async def is_updating() -> bool:
        return ("w-1", "updating") in await vms_of(manager, rollout)

    await until("the first is under way", is_updating)
    await act(manager, rollout, "halt")
    agent.hold.set()
    halted = await comes_to(manager, rollout, "halted")
    assert (halted["vms"]["done"], halted["vms"]["pending"]) == (1, 2)
    await act(manager, rollout, "cancel")
    cancelled = await comes_to(manager, rollout, "cancelled")
    assert (cancelled["vms"]["done"], cancelled["vms"]["skipped"]) == (1, 2)
    await act(manager, rollout, "halt", 409)
    listed = (await manager.http.get("/v1/rollouts?template=web&state=cancelled")).json()
    assert [item["id"] for item in listed["items"]] == [rollout]

    rest = await begin(manager, pause_s=3600, batch=2)

    async def rests() -> bool:
        item = (await manager.http.get(f"/v1/rollouts/{rest}")).json()["item"]
        return item["next_at"] is not None

    await until("it rests between batches", rests)
    assert (await vms_of(manager, rest))[2] == ("w-3", "pending")
    await manager.http.delete("/v1/vms/w-3?wait=deleted")
    await act(manager, rest, "halt")
    await act(manager, rest, "resume")
    done = await comes_to(manager, rest, "done")
    assert done["vms"]["skipped"] == 1


async def test_what_cannot_be_rolled_out(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await fleet(manager, 2)
    for body, status in (({"version": 3}, 404), ({"selector": {"no": "such"}}, 422)):
        answer = await manager.http.post("/v1/templates/web/rollouts", json=body)
        assert answer.status_code == status
    await change(manager, mem_mib=1 << 19)
    halted = await comes_to(manager, await begin(manager, batch=2), "halted")
    assert halted["vms"]["failed"] == 2
    items = (await manager.http.get(f"/v1/rollouts/{halted['id']}/vms")).json()["items"]
    assert "memory" in items[0]["message"]
    assert {agent.machines[item["vm_id"]].boot for item in items} == {1}


async def test_another_manager_goes_on(
    database_url: str, tmp_path: Path, agent: AgentDouble
) -> None:
    """The first manager ends in the middle of a batch; the next one finishes the rollout."""
    settings = settings_for(tmp_path, database_url, agent.url)
    async with running(settings) as first:
        await first.add_defaults()
        await fleet(first)
        agent.hold = anyio.Event()
        rollout = await begin(first, batch=2)

        async def is_updating() -> bool:
            return ("w-2", "updating") in await vms_of(first, rollout)

        await until("a batch is under way", is_updating)
    agent.hold.set()
    agent.hold = None
    async with running(settings) as second:
        done = await comes_to(second, rollout, "done")
        assert done["vms"]["done"] == 4
        async with second.runtime.db.read() as session:
            boots = set(await session.scalars(select(VmRow.boot)))
        assert boots == {2}


async def test_root_disks_are_kept_or_replaced(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    for name in ("one", "two"):
        await manager.add_image("rootfs", name)
    first, second = await fleet(manager, 2, rootfs="one")
    own = (await use(manager, name="own", version=1, rootfs="one"))["item"]
    await manager.http.post("/v1/vms/w-2/stop?wait=stopped")
    await change(manager, rootfs="two", rootfs_size_mib=8)
    await comes_to(manager, await begin(manager), "done")
    machine = agent.machines[first["id"]]
    assert (machine.boot, machine.root_boot) == (2, None)
    assert (await manager.vm("w-1"))["rootfs"]["name"] == "one"

    rollout = await begin(manager, rootfs="replace", batch=3)
    done = await comes_to(manager, rollout, "done")
    assert done["vms"]["done"] == 3
    for vm, boot, root_boot, size_mib in ((first, 3, 3, 8), (second, 1, 2, 8)):
        shown = await manager.vm(vm["id"])
        assert (shown["rootfs"]["name"], shown["drives"][0]["size_mib"]) == ("two", size_mib)

        async def is_told(
            vm_id: str = vm["id"], wanted: tuple[int, int, int] = (boot, root_boot, size_mib)
        ) -> bool:
            machine = agent.machines[vm_id]
            return (machine.boot, machine.root_boot, machine.rootfs_size_mib) == wanted

        await until("its host is told", is_told)
    kept = agent.machines[own["id"]]
    assert (kept.boot, kept.root_boot) == (2, None)

    await act(manager, rollout, "rollback")
    await comes_to(manager, rollout, "rolled_back")
    machine = agent.machines[first["id"]]
    assert (machine.boot, machine.root_boot, machine.rootfs_size_mib) == (4, 4, None)
    assert (await manager.vm("w-1"))["rootfs"]["name"] == "one"


async def test_cut_off_at_every_statement_of_its_steps(
    sqlite_manager: Manager, agent: AgentDouble
) -> None:
    """Each attempt gets one statement further than the one before; nothing is done twice."""
    manager = sqlite_manager
    made = await fleet(manager, 2)
    db = manager.runtime.db
    reach, walked, cuts = 1, 0, 0

    def cut(*_: object) -> None:
        nonlocal reach, walked, cuts
        bound = structlog.contextvars.get_contextvars()
        if "rollout_id" not in bound or "vm_id" in bound:
            return  # somebody else's statement
        walked += 1
        if walked == reach:
            reach, walked, cuts = reach + 1, 0, cuts + 1
            raise OSError("killed")

    async def ended() -> dict[str, Any] | None:
        # What the next manager does at its start.
        async with db.write() as session:
            await leases.drop_all(session, RolloutRow)
        manager.runtime.rollout_pipeline.hint()
        item = (await manager.http.get(f"/v1/rollouts/{rollout}")).json()["item"]
        return item if item["state"] == "done" else None

    for what in ("before_cursor_execute", "commit"):
        event.listen(db.engine.sync_engine, what, cut)
    try:
        with capture_logs():  # a traceback in colours takes longer than all of this
            rollout = await begin(manager)
            done = await until("the rollout is done", ended, timeout_s=60)
    finally:
        for what in ("before_cursor_execute", "commit"):
            event.remove(db.engine.sync_engine, what, cut)
    assert (done["vms"]["done"], cuts > 20) == (2, True)
    for vm in made:
        assert agent.boots[vm["id"]] == {1, 2}
        reasons = await manager.reasons(vm["id"])
        assert reasons.count("rollout") == 1
