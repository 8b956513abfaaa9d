"""The rules of a machine's life, for any facts."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from nexus.agent.plan import Seen, Step, plan, state_of
from nexus.agent.record import Phase
from nexus.api.machines import Blob, Machine
from nexus.ids import new_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)

machines = st.builds(
    Machine,
    id=st.builds(new_id),
    name=st.just("one"),
    generation=st.integers(1, 5),
    power=st.sampled_from(["running", "paused", "stopped"]),
    boot=st.integers(0, 3),
    vcpu=st.just(1),
    mem_mib=st.just(128),
    kernel=st.just(Blob(sha256="0" * 64, size_bytes=1)),
    initrd=st.none(),
    rootfs=st.none(),
    kernel_args=st.none(),
    nics=st.just([]),
    user_data=st.none(),
    ssh_keys=st.just([]),
    stop_timeout_s=st.sampled_from([0.0, 5.0]),
)
facts = st.builds(
    Seen,
    phase=st.sampled_from(get_args(Phase)),
    boot=st.integers(0, 3),
    alive=st.booleans(),
    paused=st.booleans(),
    stop_asked_at=st.one_of(
        st.none(), st.integers(0, 10).map(lambda ago: NOW - timedelta(seconds=ago))
    ),
    tuned=st.booleans(),
)


@given(machines, facts)
def test_never_starts_a_second_vmm(desired: Machine, seen: Seen) -> None:
    if seen.alive:
        assert plan(desired, seen, NOW) not in (Step.START, Step.PREPARE, Step.SETTLE)


@given(machines, facts)
def test_starts_only_a_higher_boot(desired: Machine, seen: Seen) -> None:
    if plan(desired, seen, NOW) is Step.START:
        assert desired.boot > seen.boot
        assert desired.power != "stopped"


@given(machines, facts)
def test_ends_a_vmm_only_when_another_boot_or_none_is_wanted(desired: Machine, seen: Seen) -> None:
    if plan(desired, seen, NOW) in (Step.KILL, Step.ASK_STOP):
        assert (
            desired.power == "stopped" or desired.boot > seen.boot or seen.stop_asked_at is not None
        )


@given(machines, facts)
def test_every_life_settles(desired: Machine, seen: Seen) -> None:
    """Taking the steps one after the other comes to rest, and rests where it was wanted."""
    for _ in range(12):
        step = plan(desired, seen, NOW)
        if step is Step.NOTHING:
            break
        seen = _taken(step, desired, seen)
    assert plan(desired, seen, NOW) is Step.NOTHING
    if seen.alive:
        assert state_of(seen, None) == desired.power
        assert desired.boot <= seen.boot


def _taken(step: Step, desired: Machine, seen: Seen) -> Seen:
    """What is seen after a step that succeeded."""
    match step:
        case Step.PREPARE:
            return Seen("configured", seen.boot, alive=False)
        case Step.START:
            return Seen("running", desired.boot, alive=True)
        case Step.AWAIT_API:
            return Seen("running", seen.boot, alive=True)
        case Step.PAUSE | Step.RESUME:
            return replace(seen, phase="running", paused=step is Step.PAUSE)
        case Step.TUNE:
            return replace(seen, tuned=True)
        case Step.ASK_STOP:
            return Seen(seen.phase, seen.boot, alive=True, stop_asked_at=NOW)
        case Step.AWAIT_EXIT | Step.KILL:
            phase = seen.phase if seen.phase in ("starting", "running") else "ended"
            return Seen(phase, seen.boot, alive=False)
        case _:
            return Seen("ended", seen.boot, alive=False)


@given(machines, facts)
def test_a_vmm_is_tuned_only_while_it_runs_and_as_it_is_wanted(
    desired: Machine, seen: Seen
) -> None:
    if plan(desired, seen, NOW) is Step.TUNE:
        assert seen.alive
        assert not seen.tuned
        assert seen.stop_asked_at is None
        assert state_of(seen, None) == desired.power
