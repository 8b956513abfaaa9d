"""The agent, and the VMM as well, are killed in the middle of snapshots; the next one finishes.

One walk past all named points: each start of an agent both recovers from the point before and dies
at the next one. Captures and loads alternate, so that no recovery passes the point that is next.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from nexus.agent.faults import POINTS
from nexus.api.machines import Blob, Machine, MachineStatus
from nexus.api.origins import Origin
from nexus.api.snapshots import HostSnapshot, SnapshotOrder
from tests.agent.forking import ForkedAgent
from tests.agent.harness import Agent, agent_of, until
from tests.agent.snapshots import capture, clone, count, order, put, remove

pytestmark = [pytest.mark.firecracker, pytest.mark.root]

CAPTURES = (
    "capture_begun",
    "capture_paused",
    "capture_created",
    "capture_cloned",
    "capture_resumed",
    "snapshot_sealed",
    "snapshot_kept",
)
LOADS = ("after_spawn", "load_placed", "load_ready", "load_loaded")
REST = ("load_placing", "snapshot_merged", "snapshot_going")


@pytest.fixture
def agent(firecracker_binary: Path) -> Iterator[Agent]:
    with agent_of(ForkedAgent, firecracker_binary) as agent:
        yield agent


def test_every_point_is_walked() -> None:
    walked = {*CAPTURES, *LOADS, *REST}
    ours = {name for name in POINTS if name.startswith(("capture_", "snapshot_", "load_"))}
    assert ours <= walked


class Walk:
    """A machine that is captured, and machines that are loaded, with an agent that dies."""

    def __init__(self, agent: Agent, kernel: Path) -> None:
        self.agent = agent
        self.kernel = kernel
        image = agent.dir / "root.img"
        image.write_bytes(bytes(1 << 20))
        self.rootfs: Blob = agent.blob(image)
        self.source = agent.machine(kernel, rootfs=self.rootfs, track_dirty_pages=True)
        agent.put(self.source)
        agent.type(self.source.id, b"x")
        self.snapshot = capture(agent, self.source)

    def die_at(self, point: str, ask: Callable[[], object]) -> None:
        """Has the agent, which was started to die there, do so."""
        with contextlib.suppress(httpx.TransportError):
            ask()
        process = self.agent.process
        assert process is not None
        assert process.wait(timeout=60) == -9, point
        self.agent.process = None

    def ask_put(self, machine: Machine) -> Callable[[], object]:
        path, body = f"/agent/v1/vms/{machine.id}", machine.model_dump(mode="json")
        return lambda: self.agent.http.put(path, json=body)

    def assert_clean(self, *kept: str) -> None:
        """Nothing half, nobody paused."""
        shelf = self.agent.run_dir / "snapshots"
        assert {path.name for path in shelf.iterdir()} == {self.snapshot.id, *kept}
        found = self.agent.http.get("/agent/v1/snapshots").json()["items"]
        assert {item["id"] for item in found} == {self.snapshot.id, *kept}
        root = self.agent.run_dir / "vms" / self.source.id / "root"
        until("no stray files", lambda: not [*root.glob(".*"), *root.glob("snap.*")])

    def assert_source_runs(self) -> None:
        status = self.agent.get(self.source.id)
        assert (status.state, status.error) == ("running", None)
        until("it goes on", lambda: self.vmm_state() == "Running")
        assert count(self.agent, self.source.id) >= 0

    def vmm_state(self) -> str:
        path = f"/agent/v1/vms/{self.source.id}/proxy/"
        return str(self.agent.http.get(path).json().get("state"))

    def kill_vmm(self, vm_id: str) -> None:
        for pid in self.agent.vmms(vm_id):
            os.kill(pid, signal.SIGKILL)

    def reboot_source(self) -> None:
        """After its VMM was killed."""
        status = until("it is settled", lambda: settled(self.agent.get(self.source.id)))
        assert (status.state, status.exit_cause) == ("stopped", "crashed")
        change = {"boot": status.boot + 1, "generation": self.source.generation + 1}
        self.source = self.source.model_copy(update=change)
        greeted = self.greetings()
        assert self.agent.put(self.source).state == "running"
        until("it is up again", lambda: self.greetings() > greeted)

    def greetings(self) -> int:
        return "".join(self.agent.console(self.source.id)).count("tiny ready")


def settled(status: MachineStatus) -> MachineStatus | None:
    return status if status.exit_cause else None


def test_killed_at_every_point(agent: Agent, tiny_kernel: Path) -> None:
    nothing = agent.traces()
    walk = Walk(agent, tiny_kernel)
    agent.stop()
    recovered: Callable[[], None] = walk.assert_source_runs
    for number, point in enumerate(CAPTURES):
        agent.start(NEXUS_FAULT=point)
        recovered()
        wish = order(walk.source)
        walk.die_at(point, lambda wish=wish: put(agent, wish))  # type: ignore[misc]
        if point == "capture_paused":
            walk.kill_vmm(walk.source.id)
        recovered = after_capture(walk, point, wish)
        if number < len(LOADS):
            point = LOADS[number]
            agent.start(NEXUS_FAULT=point)
            recovered()
            machine = clone(agent, tiny_kernel, walk.snapshot)
            walk.die_at(point, walk.ask_put(machine))
            if point == "load_loaded":
                walk.kill_vmm(machine.id)
            recovered = after_load(walk, point, machine)

    agent.start(NEXUS_FAULT="load_placing")
    recovered()
    origin = Origin(snapshot=walk.snapshot.id, boot=walk.source.boot + 1)
    change = {"boot": origin.boot, "generation": walk.source.generation + 1, "origin": origin}
    walk.source = walk.source.model_copy(update=change)
    walk.die_at("load_placing", walk.ask_put(walk.source))

    agent.start(NEXUS_FAULT="snapshot_merged")
    status = until("it is restored", lambda: running(agent.get(walk.source.id), origin.boot))
    assert status.identity is not None
    walk.assert_source_runs()
    first = capture(agent, walk.source)
    diff = capture(agent, walk.source, first)
    walk.die_at("snapshot_merged", lambda: agent.http.delete(f"/agent/v1/snapshots/{first.id}"))

    agent.start(NEXUS_FAULT="snapshot_going")
    walk.assert_clean(first.id, diff.id)
    walk.die_at("snapshot_going", lambda: agent.http.delete(f"/agent/v1/snapshots/{first.id}"))

    agent.start()
    walk.assert_clean(diff.id)
    machine = clone(agent, tiny_kernel, diff)
    assert agent.put(machine).state == "running"
    assert count(agent, machine.id) >= 0
    for done in (machine, walk.source):
        agent.delete(done.id)
    for snapshot in (diff, walk.snapshot):
        remove(agent, snapshot)
    assert agent.traces() == nothing


def after_capture(walk: Walk, point: str, wish: SnapshotOrder) -> Callable[[], None]:
    def check() -> None:
        kept = [wish.id] if point == "snapshot_kept" else []
        if point == "capture_paused":
            walk.reboot_source()
        walk.assert_source_runs()
        walk.assert_clean(*kept)
        if kept:
            # The same order finds it done.
            remove(walk.agent, HostSnapshot.model_validate_json(put(walk.agent, wish).content))

    return check


def after_load(walk: Walk, point: str, machine: Machine) -> Callable[[], None]:
    def check() -> None:
        agent = walk.agent
        if point == "load_loaded":
            status = until("it is settled", lambda: settled(agent.get(machine.id)))
            assert (status.exit_cause, agent.vmms(machine.id)) == ("crashed", [])
        else:
            until("it was loaded", lambda: running(agent.get(machine.id), 1))
            assert count(agent, machine.id) >= 0
            assert "ready" not in "".join(agent.console(machine.id))
            assert len(agent.vmms(machine.id)) == 1
        agent.delete(machine.id)
        walk.assert_clean()

    return check


def running(status: MachineStatus, boot: int) -> MachineStatus | None:
    return status if (status.state, status.boot) == ("running", boot) else None
