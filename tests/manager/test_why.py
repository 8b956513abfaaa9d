"""Why a VM is as it is: the words, and the whole answer through the API."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from fastapi import Response
from hypothesis import given
from hypothesis import strategies as st

from nexus import httpd
from nexus.api.common import Progress
from nexus.api.endings import LastExit
from nexus.api.vms import Stage, VmError, VmEvent, VmState
from nexus.api.why import VmWhy, WhyState
from nexus.ids import new_id
from nexus.manager.services.why import Facts, next_commands, summary, turning_point
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 2, tzinfo=UTC)
VM = new_id()
CRASH = LastExit(at=NOW, cause="crashed", message="it was killed")


def told(*states: tuple[VmState, str], actor: str = "system") -> list[VmEvent]:
    """Events a second apart."""
    return [
        VmEvent(
            id=number,
            vm_id=VM,
            vm_name="web",
            at=NOW + timedelta(seconds=number),
            state=state,
            reason=reason,
            message=f"{reason} it is",
            actor=actor,
            request_id=None,
        )
        for number, (state, reason) in enumerate(states, 1)
    ]


RUNS: list[tuple[VmState, str]] = [("requested", "created"), ("running", "started")]


@pytest.mark.parametrize(
    ("facts", "words", "command"),
    [
        (Facts("web", "running", told(*RUNS)), "web runs", "nexus console web"),
        (
            Facts("web", "running", told(*RUNS), console=["x", "Kernel panic - not syncing: y"]),
            "its kernel panicked and hangs",
            "nexus stop --force web",
        ),
        (
            Facts("web", "running", told(*RUNS), disk_left_mib=0),
            "its host has 0 MiB of disk left: a guest that writes may hang",
            "nexus snapshot ls",
        ),
        (Facts("web", "running", told(*RUNS), disk_left_mib=64), "web runs", "nexus console web"),
        (
            Facts("web", "running", told(*RUNS), power="paused", unsettled=True),
            "web runs; it is to be paused",
            "nexus console web",
        ),
        (
            Facts("web", "stopped", told(*RUNS, ("stopped", "guest_poweroff"))),
            "its guest powered itself off",
            "nexus start web",
        ),
        (
            Facts("web", "stopped", told(*RUNS, ("stopped", "killed"), actor="ann")),
            "(asked for by ann)",
            "nexus start web",
        ),
        (Facts("web", "paused", told(*RUNS, ("paused", "paused"))), "memory", "nexus resume web"),
        (
            Facts(
                "web",
                "error",
                told(*RUNS, ("error", "failed")),
                error=VmError(stage="spawn", message="no firecracker", suggestion="put it back"),
            ),
            "could not start, it failed in stage spawn: no firecracker",
            "nexus logs web --source vmm",
        ),
        (
            Facts(
                "web",
                "error",
                told(*RUNS, ("error", "guest_panic")),
                error=VmError(stage="run", message="the guest's kernel panicked: x"),
            ),
            "ended while it ran",
            "nexus logs web --source console",
        ),
        (
            Facts("web", "requested", told(RUNS[0]), power="running", unsettled=True, attempts=3),
            "its host was asked 3 times in vain",
            "nexus host ls",
        ),
        (
            Facts(
                "web",
                "requested",
                told(RUNS[0]),
                progress=Progress(what="fetching the image of rootfs", fraction=0.4),
            ),
            "its host is fetching the image of rootfs (40% are there)",
            "nexus show web",
        ),
        (
            Facts("web", "unknown", told(*RUNS, ("unknown", "host_lost"))),
            "its host does not answer",
            "nexus host ls",
        ),
        (
            Facts("web", "running", told(*RUNS), restarts=2, last_exit=CRASH),
            "web runs; its restart policy started it again 2 times, last because: it was killed",
            "nexus console web",
        ),
        (
            Facts(
                "web",
                "error",
                told(*RUNS, ("error", "vmm_crashed")),
                error=VmError(stage="run", message="it was killed"),
                restarts=1,
                restart_at=NOW,
            ),
            "again once; it is started again at 2026-01-02T00:00:00",
            "nexus stop web",
        ),
        (
            Facts(
                "web",
                "running",
                told(*RUNS),
                devices_error=VmError(stage="run", message="the VMM does not take a balloon"),
            ),
            "web runs; the VMM does not take a balloon",
            "nexus console web",
        ),
        (Facts("web", "deleted", told(*RUNS, ("deleting", "deleted"))), "was deleted", "nexus ls"),
        (
            Facts("web", "deleted", told(("deleting", "expired"), ("deleting", "deleted"))),
            "because its time was up",
            "nexus ls",
        ),
    ],
)
async def test_the_words(facts: Facts, words: str, command: str) -> None:
    assert words in summary(facts)
    assert command in next_commands(facts)


async def test_since_when_is_the_first_event_of_the_present_state() -> None:
    events = told(*RUNS, ("stopped", "killed"), ("requested", "start_requested"), RUNS[1])
    events += told(*RUNS, ("running", "renamed"))[2:]
    turn = turning_point(Facts("web", "running", events))
    assert (turn.id, turn.reason) == (5, "started")


@given(
    st.sampled_from(get_args(VmState)),
    st.lists(
        st.tuples(st.sampled_from(get_args(VmState)), st.sampled_from(["a", "expired", "killed"])),
        min_size=1,
    ),
    st.sampled_from([None, "running", "paused", "stopped", "deleted"]),
    st.booleans(),
    st.integers(0, 9),
    st.none() | st.builds(VmError, stage=st.sampled_from(get_args(Stage)), message=st.just("m")),
    st.booleans(),
)
def test_there_is_always_an_answer(  # type: ignore[no-untyped-def]
    state, events, power, unsettled, attempts, error, gone
) -> None:
    shown: WhyState = "deleted" if gone else state
    facts = Facts("web", shown, told(*events), power, unsettled, attempts, error, ["x"])
    assert summary(facts).startswith("web ")
    assert next_commands(facts)
    assert turning_point(facts) in facts.events


async def ask(manager: Manager, ref: str) -> VmWhy:
    answer = await manager.http.get(f"/v1/vms/{ref}/why")
    assert answer.status_code == 200, answer.text
    return VmWhy.model_validate(answer.json()["item"])


async def test_a_vm_that_could_not_start(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="bad")
    error = VmError(
        stage="boot",
        message="the VMM ended before the guest ran",
        fault_message="Invalid Elf magic number",
        suggestion="nexus image ls --kind kernel",
        log_tail=["Running Firecracker", "error: Invalid Elf magic number"],
    )
    agent.push(vm["id"], state="error", pid=None, error=error)
    await manager.becomes("bad", "error")
    found = await ask(manager, "bad")
    assert (found.vm_id, found.state, found.reason) == (vm["id"], "error", "failed")
    assert found.error == error
    assert found.log_tail == error.log_tail
    assert "stage boot" in found.summary
    assert found.events[0].reason == "created"


async def test_a_vm_that_runs_tells_its_console(manager: Manager) -> None:
    await manager.create(name="runs")
    found = await ask(manager, "runs")
    assert (found.state, found.log_source, found.log_missing) == ("running", "console", None)
    assert found.log_tail
    assert found.actor == "admin"


async def test_a_vm_whose_host_is_away(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="away")
    manager.runtime.agents.learn(vm["host_id"], "unix:/nowhere/agent.sock")
    found = await ask(manager, "away")
    assert found.log_tail == []
    assert "does not answer" in (found.log_missing or "")
    manager.runtime.agents.learn(vm["host_id"], agent.url)


async def test_a_vm_that_is_gone_is_known_by_name_and_id(manager: Manager) -> None:
    vm = await manager.create(name="gone")
    assert (await manager.http.delete("/v1/vms/gone?wait=deleted")).status_code == 200
    for ref in ("gone", vm["id"]):
        found = await ask(manager, ref)
        assert (found.vm_id, found.name, found.state) == (vm["id"], "gone", "deleted")
        assert (found.reason, found.actor) == ("deleted", "admin")
        assert found.next == ["nexus ls"]
    # A new one of that name is meant from now on.
    again = await manager.create(name="gone")
    assert (await ask(manager, "gone")).vm_id == again["id"]
    assert (await ask(manager, vm["id"])).state == "deleted"


async def test_a_vm_that_never_was(manager: Manager) -> None:
    for ref in ("never", new_id()):
        answer = await manager.http.get(f"/v1/vms/{ref}/why")
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_a_full_host_is_a_failure_of_its_disk(manager: Manager, agent: AgentDouble) -> None:
    agent.faults = [full_disk]
    answer = await manager.http.post("/v1/vms?wait=running", json={"name": "full"})
    error = answer.json()["item"]["error"]
    assert (error["stage"], error["suggestion"]) == ("disk", "df -h /srv/fc")


def full_disk() -> Response:
    return httpd.envelope(new_id(), 409, "no_capacity", "no space", suggestion="df -h /srv/fc")
