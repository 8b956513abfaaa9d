"""The agent is killed in the middle of things; the next one finds what is, and finishes."""

import os
import random
import threading
import time
from pathlib import Path

import httpx
import pytest

from nexus.api.machines import Blob, Machine
from tests.agent.harness import Agent, links, until

pytestmark = [pytest.mark.firecracker, pytest.mark.root]

KILLS = 24


def disk(agent: Agent) -> Blob:
    image = agent.dir / "root.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    return agent.blob(image)


def put_and_be_cut_off(agent: Agent, machine: Machine) -> threading.Thread:
    def put() -> None:
        try:
            agent.put(machine)
        except (httpx.TransportError, AssertionError):
            return

    thread = threading.Thread(target=put)
    thread.start()
    return thread


def assert_runs_once(agent: Agent, machine: Machine, before: dict[str, list[str]]) -> None:
    """Running, once, with nothing beside it; and nothing at all after its deletion."""
    agent.put(machine)
    status = agent.get(machine.id)
    assert (status.state, status.boot, status.error) == ("running", 1, None)
    assert agent.vmms() == [status.pid]
    assert len([name for name in links() if name.startswith("nx")]) == 1
    banners = [line for line in agent.console(machine.id) if "nexus-tiny ready" in line]
    if not banners:
        until("the banner", lambda: "ready" in "".join(agent.console(machine.id)))
    assert len(banners) <= 1
    agent.delete(machine.id)
    assert agent.traces() == before


@pytest.mark.parametrize(
    "point",
    ["after_desired", "after_disk", "after_tap", "before_spawn", "after_spawn", "after_running"],
)
def test_killed_at_a_named_point_of_a_create(agent: Agent, tiny_kernel: Path, point: str) -> None:
    machine = agent.machine(tiny_kernel, rootfs=disk(agent))
    before = agent.traces()
    agent.stop()
    agent.start(NEXUS_FAULT=point)
    cut_off = put_and_be_cut_off(agent, machine)
    process = agent.process
    assert process is not None
    assert process.wait(timeout=20) == -9
    cut_off.join()
    agent.start()
    assert_runs_once(agent, machine, before)


def test_killed_at_any_moment_of_a_create(agent: Agent, tiny_kernel: Path) -> None:
    chance = random.Random(20)  # noqa: S311 - moments, not secrets
    rootfs = disk(agent)
    before = agent.traces()
    seen_states = set()
    for _ in range(KILLS):
        machine = agent.machine(tiny_kernel, rootfs=rootfs)
        cut_off = put_and_be_cut_off(agent, machine)
        # Not a wait for something: the moment of the kill is what the test varies.
        time.sleep(chance.uniform(0, 0.03))
        agent.kill()
        cut_off.join()
        seen_states.add(len(agent.vmms()))
        agent.start()
        assert_runs_once(agent, machine, before)
    assert seen_states <= {0, 1}


@pytest.mark.parametrize("point", ["after_kill", "after_trash"])
def test_killed_in_the_middle_of_a_deletion(agent: Agent, tiny_kernel: Path, point: str) -> None:
    before = agent.traces()
    machine = agent.machine(tiny_kernel, rootfs=disk(agent))
    agent.stop()
    agent.start(NEXUS_FAULT=point)
    agent.put(machine)
    with pytest.raises(httpx.TransportError):
        agent.http.delete(f"/agent/v1/vms/{machine.id}")
    assert agent.process is not None
    agent.process.wait(timeout=20)
    agent.start()
    agent.delete(machine.id)
    assert agent.traces() == before


def test_running_vms_are_not_touched_by_a_restart(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    first = agent.put(machine)
    agent.type(machine.id, b"c")
    agent.kill()
    agent.start()
    second = until("it is found", lambda: _running(agent, machine.id))
    assert (second.pid, second.boot, second.started_at) == (
        first.pid,
        first.boot,
        first.started_at,
    )
    agent.stop()
    assert agent.vmms() == [first.pid]
    agent.start()
    until("it is found", lambda: _running(agent, machine.id))
    agent.type(machine.id, b"q")
    ended = until("its end", lambda: _ended(agent, machine.id))
    assert ended.exit_cause == "guest_poweroff"


def _running(agent: Agent, vm_id: str):  # type: ignore[no-untyped-def]
    status = agent.get(vm_id)
    return status if status.state == "running" else None


def _ended(agent: Agent, vm_id: str):  # type: ignore[no-untyped-def]
    status = agent.get(vm_id)
    return status if status.state == "stopped" else None


def test_a_death_while_no_agent_watched(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    pid = agent.put(machine).pid
    assert pid is not None
    agent.kill()
    os.kill(pid, 9)
    until("it is gone", lambda: not agent.vmms())
    agent.start()
    ended = until("its end", lambda: _ended(agent, machine.id))
    assert ended.exit_cause == "crashed"
    assert agent.vmms() == []
    assert [name for name in links() if name.startswith("nx")] == []


def test_orphan_taps_of_ours_go_and_others_stay(agent: Agent) -> None:
    import subprocess

    bridge = agent.http.get("/agent/v1/inventory").json()["network"]["bridge"]
    for name, member in (("nx0123456789a", True), ("other0", True), ("nxelsewhere", False)):
        subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
        if member:
            subprocess.run(["ip", "link", "set", name, "master", bridge], check=True)
    try:
        agent.stop()
        agent.start()
        assert "nx0123456789a" not in links()
        assert {"other0", "nxelsewhere"} <= set(links())
    finally:
        for name in ("other0", "nxelsewhere"):
            subprocess.run(["ip", "link", "del", name], check=True)


def test_two_agents_never_share_a_run_directory(agent: Agent) -> None:
    first, agent.process = agent.process, None
    agent.start(ready=False, AGENT_BIND=f"unix:{agent.dir}/other.sock")
    second, agent.process = agent.process, first
    assert second is not None
    assert second.wait(timeout=30) == 1
    assert "already serves" in agent.log.read_text()
