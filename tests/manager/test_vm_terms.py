"""Restart policies and times that come, as the manager sees them; the agent carries them out."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nexus.api.endings import LastExit
from nexus.api.vms import VmError
from nexus.manager.config import Settings
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, running, until

pytestmark = pytest.mark.anyio


def crash(at: datetime) -> dict[str, Any]:
    last = LastExit(at=at, cause="crashed", message="the VMM ended by itself by signal 9")
    return {
        "last_exit": last,
        "exited_at": at,
        "exit_cause": "crashed",
        "state": "stopped",
        "error": VmError(stage="run", message=last.message),
    }


async def test_the_agent_is_told_the_terms(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="one", restart_policy="on-failure", ttl=3600)
    told = agent.machines[vm["id"]]
    assert told.restart_policy == vm["restart_policy"] == "on-failure"
    assert told.expires_at is not None
    assert told.expires_at == datetime.fromisoformat(vm["expires_at"])
    left = told.expires_at - datetime.fromisoformat(vm["created_at"])
    assert left == timedelta(seconds=3600)


async def test_a_restart_is_told(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="one", restart_policy="on-failure")
    now = datetime.now(UTC)
    agent.push(vm["id"], **crash(now), restart_at=now + timedelta(seconds=4))
    seen = await manager.becomes("one", "error")
    assert seen["restart_at"]
    assert seen["last_exit"]["cause"] == "crashed"
    agent.push(vm["id"], state="preparing", restart_at=None, restarts=1, error=None)
    agent.push(vm["id"], state="running", restarts=1, started_at=datetime.now(UTC))
    seen = await manager.becomes("one", "running")
    assert (seen["restarts"], seen["error"], seen["restart_at"]) == (1, None, None)
    reasons = await manager.reasons("one")
    assert "vmm_crashed" in reasons
    assert reasons[-1] == "restarted"
    assert (await manager.http.post("/v1/vms/one/pause?wait=paused")).status_code == 200


async def test_a_restart_nobody_saw_is_told_afterwards(
    manager: Manager, agent: AgentDouble
) -> None:
    vm = await manager.create(name="one", restart_policy="always")
    now = datetime.now(UTC)
    unseen = crash(now) | {"state": "running", "error": None}
    agent.push(vm["id"], **unseen, restarts=3, started_at=now)

    async def told() -> list[str] | None:
        reasons = await manager.reasons("one")
        return reasons if "restarted" in reasons else None

    assert (await until("it is told", told))[-2:] == ["vmm_crashed", "restarted"]
    agent.push(vm["id"])
    agent.push(vm["id"], state="paused")
    await manager.becomes("one", "paused")
    assert (await manager.reasons("one")).count("restarted") == 1


async def test_a_power_off_that_is_restarted_does_not_become_the_wish(
    manager: Manager, agent: AgentDouble
) -> None:
    vm = await manager.create(name="one", restart_policy="always")
    now = datetime.now(UTC)
    off = LastExit(at=now, cause="guest_poweroff", message="the guest powered itself off")
    agent.push(
        vm["id"],
        state="stopped",
        exit_cause="guest_poweroff",
        last_exit=off,
        restart_at=now + timedelta(seconds=60),
    )
    seen = await manager.becomes("one", "stopped")
    assert seen["generation"] == vm["generation"]
    assert (await manager.reasons("one"))[-1] == "guest_poweroff"
    started = await manager.http.post("/v1/vms/one/start?wait=running")
    assert started.status_code == 200
    assert agent.machines[vm["id"]].boot == 2


async def test_terms_change(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="one")
    url = f"/v1/vms/{vm['id']}"
    changed = await manager.http.patch(url, json={"restart_policy": "always", "ttl": 60})
    assert changed.status_code == 200, changed.text
    assert changed.json()["item"]["restart_policy"] == "always"

    async def heard() -> bool:
        return agent.machines[vm["id"]].restart_policy == "always"

    await until("the agent is told", heard)
    assert agent.machines[vm["id"]].expires_at is not None
    later = {"expires_at": "2030-01-01T00:00:00+02:00"}
    moved = (await manager.http.patch(url, json=later)).json()["item"]
    assert moved["expires_at"] == "2029-12-31T22:00:00Z"
    never = (await manager.http.patch(url, json={"expires_at": None})).json()["item"]
    assert never["expires_at"] is None
    assert never["state"] == "running"
    same = (await manager.http.patch(url, json={"expires_at": None})).json()["item"]
    assert same["generation"] == never["generation"]
    assert (await manager.reasons("one")).count("terms_changed") == 3


async def test_a_vm_goes_when_its_time_is_up(manager: Manager, agent: AgentDouble) -> None:
    stays = await manager.create(name="stays")
    vm = await manager.create(name="brief", ttl=1)

    async def gone() -> bool:
        return (await manager.http.get(f"/v1/vms/{vm['id']}")).status_code == 404

    await until("it is gone", gone)
    assert datetime.now(UTC) >= datetime.fromisoformat(vm["expires_at"])
    assert set(agent.machines) == {stays["id"]}


async def test_a_time_that_came_while_no_manager_lived(
    settings: Settings, agent: AgentDouble
) -> None:
    async with running(settings) as manager:
        await manager.add_defaults()
        vm = await manager.create(name="brief", ttl=2)
    await until("its time is up", lambda: _past(vm["expires_at"]))
    async with running(settings) as manager:

        async def gone() -> bool:
            return (await manager.http.get("/v1/vms")).json()["items"] == []

        await until("it is gone", gone)


async def _past(at: str) -> bool:
    return datetime.now(UTC) > datetime.fromisoformat(at)


@pytest.mark.parametrize(
    "terms",
    [
        {"ttl": 0},
        {"ttl": -5},
        {"ttl": "60"},
        {"ttl": 1.5},
        {"ttl": 10**12},
        {"ttl": 60, "expires_at": "2030-01-01T00:00:00Z"},
        {"expires_at": "2001-01-01T00:00:00Z"},
        {"expires_at": "0001-01-01T00:00:00+23:59"},
        {"expires_at": "9999-12-31T23:59:59-23:59"},
        {"expires_at": "2030-01-01"},
        {"expires_at": "2030-01-01T00:00:00"},
        {"expires_at": "2030-13-01T00:00:00Z"},
        {"expires_at": 1893456000},
        {"expires_at": "1893456000"},
        {"restart_policy": "sometimes"},
        {"restart_policy": None},
    ],
)
async def test_bad_terms(manager: Manager, terms: dict[str, object]) -> None:
    made = await manager.http.post("/v1/vms", json={"name": "never", **terms})
    assert (made.status_code, made.json()["error"]) == (422, "validation_failed")
