"""VMs that end by themselves, and VMs whose time is up, on one host without a manager."""

import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nexus.api.machines import Machine, MachineStatus
from tests.agent.harness import Agent, until

pytestmark = [pytest.mark.firecracker, pytest.mark.root]


def changed(machine: Machine, **change: object) -> Machine:
    return machine.model_copy(update={"generation": machine.generation + 1, **change})


def kill(status: MachineStatus) -> None:
    assert status.pid is not None
    os.kill(status.pid, signal.SIGKILL)


def restarted(agent: Agent, vm_id: str, times: int) -> MachineStatus:
    def look() -> MachineStatus | None:
        status = agent.get(vm_id)
        return status if status.state == "running" and status.restarts == times else None

    return until(f"restart {times}", look)


def test_a_killed_vmm_runs_again_at_once_then_ever_later(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel, restart_policy="on-failure")
    first = agent.put(machine)
    kill(first)
    second = restarted(agent, machine.id, 1)
    assert second.pid != first.pid
    assert (second.boot, second.exit_cause, second.error) == (1, None, None)
    assert second.last_exit is not None
    assert (second.last_exit.cause, second.restart_at) == ("crashed", None)
    assert "signal 9" in second.last_exit.message
    kill(second)
    resting = until("it rests", lambda: _if(agent, machine.id, "stopped"))
    assert resting.restart_at is not None
    assert resting.exited_at is not None
    assert resting.restart_at - resting.exited_at == timedelta(seconds=1)
    third = restarted(agent, machine.id, 2)
    assert third.started_at is not None
    assert third.started_at >= resting.restart_at
    again = agent.put(changed(machine, boot=2))
    assert (again.state, again.boot, again.restarts) == ("running", 2, 0)


def test_on_failure_leaves_a_guest_off_that_powered_off(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel, restart_policy="on-failure")
    agent.put(machine)
    agent.type(machine.id, b"q")
    status = until("the end", lambda: _if(agent, machine.id, "stopped"))
    assert (status.exit_cause, status.restart_at) == ("guest_poweroff", None)
    always = agent.put(changed(machine, restart_policy="always"))
    assert (always.state, always.restarts) == ("running", 1)


def test_always_starts_again_but_never_what_was_stopped(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel, restart_policy="always")
    agent.put(machine)
    agent.type(machine.id, b"q")
    kill(restarted(agent, machine.id, 1))
    until("it rests", lambda: _if(agent, machine.id, "stopped"))
    machine = changed(machine, power="stopped")
    stopped = agent.put(machine)
    assert (stopped.state, stopped.restart_at) == ("stopped", None)
    machine = changed(machine, power="running", boot=2)
    assert agent.put(machine).restarts == 0
    asked = agent.put(changed(machine, power="stopped"))
    assert (asked.state, asked.restart_at) == ("stopped", None)
    assert agent.vmms(machine.id) == []


def test_what_died_while_no_agent_lived_runs_again(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel, restart_policy="on-failure")
    status = agent.put(machine)
    agent.kill()
    kill(status)
    until("it is dead", lambda: not agent.vmms(machine.id))
    agent.start()
    assert restarted(agent, machine.id, 1).boot == 1


def test_a_restart_that_was_cut_off_is_one_restart(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel, restart_policy="on-failure")
    status = agent.put(machine)
    agent.kill()
    kill(status)
    agent.start(ready=False, NEXUS_FAULT="before_spawn")
    assert agent.process is not None
    assert agent.process.wait(timeout=30) == -signal.SIGKILL
    agent.start()
    assert restarted(agent, machine.id, 1).boot == 1
    assert len(agent.vmms(machine.id)) == 1


def test_a_vm_is_gone_when_its_time_is_up(agent: Agent, tiny_kernel: Path) -> None:
    before = agent.traces()
    soon = datetime.now(UTC) + timedelta(seconds=5)
    machine = agent.machine(tiny_kernel, expires_at=soon, restart_policy="always")
    assert agent.put(machine).state == "running"
    until("it is gone", lambda: _status_code(agent, machine.id) == 404)
    assert datetime.now(UTC) >= soon
    # More time for one that is gone would make another one, without its disks.
    more = changed(machine, expires_at=soon + timedelta(hours=1))
    agent.kill()
    agent.start()
    for late in (machine, more, more):
        answer = agent.http.put(
            f"/agent/v1/vms/{machine.id}",
            content=late.model_dump_json(),
            headers={"content-type": "application/json"},
        )
        assert (answer.status_code, answer.json()["error"]) == (410, "gone")
    agent.delete(machine.id)
    until("nothing is left of it", lambda: agent.traces() == before)


def test_a_time_can_be_moved(agent: Agent, tiny_kernel: Path) -> None:
    far = datetime.now(UTC) + timedelta(hours=1)
    machine = agent.machine(tiny_kernel, expires_at=datetime.now(UTC) + timedelta(seconds=20))
    agent.put(machine)
    stays = agent.machine(tiny_kernel, name="two", nics=[], expires_at=far)
    agent.put(stays)
    agent.put(changed(machine, expires_at=datetime.now(UTC) + timedelta(seconds=3)))
    until("it is gone", lambda: _status_code(agent, machine.id) == 404)
    assert agent.get(stays.id).state == "running"


def test_a_time_that_comes_while_no_agent_lives(agent: Agent, tiny_kernel: Path) -> None:
    before = agent.traces()
    soon = datetime.now(UTC) + timedelta(seconds=5)
    machine = agent.machine(tiny_kernel, expires_at=soon)
    agent.put(machine)
    agent.kill()
    until("its time is up", lambda: datetime.now(UTC) > soon)
    assert agent.vmms(machine.id)
    agent.start()
    until("it is gone", lambda: _status_code(agent, machine.id) == 404)
    agent.delete(machine.id)
    until("nothing is left of it", lambda: agent.traces() == before)


def _if(agent: Agent, vm_id: str, state: str) -> MachineStatus | None:
    status = agent.get(vm_id)
    return status if status.state == state else None


def _status_code(agent: Agent, vm_id: str) -> int:
    return agent.http.get(f"/agent/v1/vms/{vm_id}").status_code
