"""The pipelines against an agent that fails: nothing is lost, nothing is done twice."""

from datetime import UTC, datetime, timedelta

import anyio
import pytest

from nexus.api.machines import MachineState
from nexus.api.vms import Stage, VmError
from nexus.manager.config import Settings
from nexus.manager.db.tables import VmRow
from nexus.manager.pipelines import hosts
from tests.manager.agent_double import AgentDouble, refusing
from tests.manager.core import Manager, running, until

pytestmark = pytest.mark.anyio


async def test_an_agent_that_dies_is_asked_again(manager: Manager, agent: AgentDouble) -> None:
    agent.faults = [refusing(), refusing(502), refusing(500)]
    vm = await manager.create(name="patient")
    assert vm["state"] == "running"
    assert agent.boots[vm["id"]] == {1}


async def test_a_lost_answer_does_not_boot_twice(manager: Manager, agent: AgentDouble) -> None:
    agent.lose_answers = 2
    vm = await manager.create(name="once")
    assert vm["state"] == "running"
    assert agent.boots[vm["id"]] == {1}
    assert (await manager.reasons("once")).count("started") == 1


async def test_a_delete_goes_on_until_the_agent_has_done_it(
    manager: Manager, agent: AgentDouble
) -> None:
    await manager.create(name="gone")
    agent.faults = [refusing(), refusing(500)]
    answer = await manager.http.delete("/v1/vms/gone?wait=deleted")
    assert answer.json() == {"ok": True}
    assert not agent.machines


async def test_a_guest_that_powers_off_is_stopped(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="off")
    status = agent.push(
        vm["id"],
        state="stopped",
        exit_cause="guest_poweroff",
        exited_at=datetime.now(UTC),
        pid=None,
    )
    await manager.becomes("off", "stopped")
    agent.repeat(vm["id"], status)
    assert (await manager.http.post("/v1/vms/off/start?wait=running")).status_code == 200
    agent.repeat(vm["id"], status)
    reasons = await manager.reasons("off")
    assert reasons.count("guest_poweroff") == 1
    assert (await manager.vm("off"))["state"] == "running"
    assert agent.boots[vm["id"]] == {1, 2}


async def test_a_crash_is_an_error_with_its_stage(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="crash")
    error = VmError(stage="run", message="the VMM was killed", suggestion="nexus logs crash")
    status = agent.push(vm["id"], state="stopped", exit_cause="crashed", pid=None, error=error)
    seen = await manager.becomes("crash", "error")
    assert (seen["error"]["stage"], seen["pid"]) == ("run", None)
    assert "vmm_crashed" in await manager.reasons("crash")
    agent.repeat(vm["id"], status)
    assert (await manager.vm("crash"))["error"]["message"] == "the VMM was killed"
    assert (await manager.http.post("/v1/vms/crash/start?wait=running")).status_code == 200


@pytest.mark.parametrize(("stage", "state"), [("run", "stopped"), ("boot", "error")])
async def test_a_panic_is_an_error_with_a_word_of_its_own(
    manager: Manager, agent: AgentDouble, stage: Stage, state: MachineState
) -> None:
    vm = await manager.create(name="panic")
    error = VmError(stage=stage, message="the guest's kernel panicked: no init", suggestion="x")
    agent.push(vm["id"], state=state, exit_cause="guest_panic", pid=None, error=error)
    seen = await manager.becomes("panic", "error")
    assert seen["error"]["stage"] == stage
    assert "guest_panic" in await manager.reasons("panic")
    assert (await manager.http.post("/v1/vms/panic/start?wait=running")).status_code == 200


async def test_old_and_foreign_statuses_change_nothing(
    manager: Manager, agent: AgentDouble
) -> None:
    vm = await manager.create(name="firm")
    current = agent.statuses[vm["id"]]
    agent.repeat(
        vm["id"],
        current.model_copy(
            update={"state": "stopped", "observed_at": current.observed_at - timedelta(seconds=1)}
        ),
    )
    agent.repeat(vm["id"], current.model_copy(update={"state": "error", "generation": 99}))
    agent.push(vm["id"], state="paused")
    await manager.becomes("firm", "paused")
    assert await manager.reasons("firm") == ["created", "configured", "started", "paused"]


async def test_a_stale_worker_changes_nothing(manager: Manager, agent: AgentDouble) -> None:
    agent.hold = anyio.Event()
    agent.silent = True
    vm = await manager.create("", name="stolen")
    async with manager.runtime.db.write() as session:
        row = await session.get(VmRow, vm["id"])
        assert row is not None
        assert row.lease_owner == manager.runtime.instance
        row.lease_owner, row.lease_token = "other", "of another manager"
    agent.hold.set()

    async def is_told() -> bool:
        return vm["id"] in agent.machines

    await until("the agent was told", is_told)
    assert (await manager.vm("stolen"))["state"] == "requested"
    async with manager.runtime.db.write() as session:
        row = await session.get(VmRow, vm["id"])
        assert row is not None
        row.lease_expires_at = datetime.now(UTC)
    await manager.becomes("stolen", "running")
    assert agent.boots[vm["id"]] == {1}


async def test_a_restarted_manager_goes_on(settings: Settings, agent: AgentDouble) -> None:
    agent.hold = anyio.Event()
    async with running(settings) as first:
        await first.add_defaults()
        vm = await first.create("", name="begun")
    agent.hold.set()
    async with running(settings) as second:
        await second.becomes("begun", "running")
        assert agent.boots[vm["id"]] == {1}

        async def is_settled() -> bool:
            async with second.runtime.db.read() as session:
                row = await session.get(VmRow, vm["id"])
                return row is not None and not row.unsettled

        # What the first one asked for may have been seen before the second asked for it again,
        # which would undo what is pushed.
        await until("it is settled", is_settled)
        agent.push(vm["id"], state="paused")
        await second.becomes("begun", "paused")


async def test_what_changed_while_the_manager_was_away(
    settings: Settings, agent: AgentDouble
) -> None:
    async with running(settings) as first:
        await first.add_defaults()
        off = await first.create(name="off")
        lost = await first.create(name="lost")
    agent.push(off["id"], state="stopped", exit_cause="guest_poweroff", pid=None)
    del agent.statuses[lost["id"]], agent.machines[lost["id"]]
    agent.boots.clear()
    async with running(settings) as second:
        await second.becomes("off", "stopped")

        async def is_back() -> bool:
            return lost["id"] in agent.machines

        await until("the lost machine is sent again", is_back)


async def test_orphans_go_after_a_grace_period(
    settings: Settings, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "ORPHAN_GRACE_S", 0.1)
    async with running(settings) as manager:
        await manager.add_defaults()
        kept = await manager.create(name="kept")
        vm = await manager.create(name="orphan")
        async with manager.runtime.db.write() as session:
            await session.delete(await session.get(VmRow, vm["id"]))
        agent.push(vm["id"])
        agent.push(kept["id"])

        async def is_gone() -> bool:
            return vm["id"] not in agent.machines

        await until("the orphan is removed", is_gone)
        assert agent.deletes == [vm["id"]]
        agent.push(kept["id"], state="paused")
        await manager.becomes("kept", "paused")


async def test_a_lost_host_makes_its_vms_unknown_until_it_is_back(
    settings: Settings, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(hosts, "LOST_AFTER_S", 0.3)
    monkeypatch.setattr(hosts, "UNREACHABLE_AFTER_S", 0.2)
    async with running(settings) as manager:
        await manager.add_defaults()
        vm = await manager.create(name="far")
        away = agent.socket.with_name("away.sock")
        agent.socket.rename(away)
        # Kept-alive connections would outlive the socket's name.
        await manager.runtime.agents.at(agent.url).reconnect()
        agent.hang_up()
        await manager.becomes("far", "unknown")
        assert (await manager.http.get("/readyz")).status_code == 503
        refused = await manager.http.post("/v1/vms", json={})
        assert refused.json()["error"] == "no_capacity"
        assert (await manager.http.post("/v1/vms/far/pause")).status_code == 409
        away.rename(agent.socket)
        await manager.becomes("far", "running")
        assert (await manager.reasons("far"))[-2:] == ["host_lost", "host_back"]
        assert agent.boots[vm["id"]] == {1}
