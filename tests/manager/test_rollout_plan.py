"""The planner of rollouts: whatever becomes of VMs, it comes to an end and keeps its bounds."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.api.rollouts import MemberState, RolloutOptions, RolloutState
from nexus.manager import rollout_plan as plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OUTCOMES: list[MemberState] = ["done", "failed", "skipped"]
STATES: list[MemberState] = ["pending", "updating", *OUTCOMES, "reverted", "not_reverted"]


def steps(
    state: RolloutState, members: list[MemberState], options: RolloutOptions, data: st.DataObject
) -> tuple[RolloutState, int]:
    """Lives a rollout to its end; its last state, and how many were under way at once."""
    most, rest_until, now = 0, None, NOW
    for _ in range(10 * len(members) + 10):
        step = plan.next_step(state, members, options, rest_until, now)
        match step:
            case plan.Settled():
                return state, most
            case plan.End(ended, _):
                state = ended
            case plan.Rest(until):
                assert until > now
                now = until
            case plan.Begin(positions):
                assert positions
                rest_until = None
                forward = state == "running"
                for index in positions:
                    assert members[index] in (("pending",) if forward else plan.TOUCHED)
                    members[index] = "updating" if forward else "reverting"
                most = max(most, len(positions))
            case plan.Wait():
                index = next(i for i, member in enumerate(members) if member in plan.BUSY)
                ends = OUTCOMES if members[index] == "updating" else ["reverted", "not_reverted"]
                members[index] = data.draw(st.sampled_from(ends))
                if options.pause_s and not any(member in plan.BUSY for member in members):
                    rest_until = now + timedelta(seconds=options.pause_s)
    raise AssertionError("it never ends")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["running", "halted", "cancelled", "rolling_back"]),
    st.lists(st.sampled_from(STATES), max_size=8),
    st.sampled_from([1, 2, 3, "1%", "34%", "100%"]),
    st.integers(0, 3),
    st.sampled_from([0.0, 5.0]),
    st.data(),
)
def test_it_ends_and_keeps_its_bounds(
    state: RolloutState,
    members: list[MemberState],
    batch: int | str,
    max_failures: int,
    pause_s: float,
    data: st.DataObject,
) -> None:
    options = RolloutOptions(batch=batch, max_failures=max_failures, pause_s=pause_s)
    size = plan.batch_of(options, len(members))
    assert 1 <= size <= max(1, len(members)) or isinstance(batch, int)
    before = members.copy()
    ended, most = steps(state, members, options, data)
    assert most <= size
    if ended == "done":
        assert "pending" not in members
        assert members.count("failed") <= max_failures
    if ended == "halted" and state == "running":
        assert members.count("failed") > max_failures
    if ended in ("halted", "cancelled"):
        kept = [m for m, was in zip(members, before, strict=True) if was == "pending"]
        assert state == "running" or set(kept) <= {"pending"}
    if ended == "rolled_back":
        assert not plan.TOUCHED & set(members)
    again = plan.next_step(ended, members, options, None, NOW)
    assert isinstance(again, plan.Settled)


def test_one_failure_too_many_begins_no_other() -> None:
    members: list[MemberState] = ["failed", "updating", "pending"]
    options = RolloutOptions(batch=2)
    assert plan.next_step("running", members, options, None, NOW) == plan.Wait()
    members[1] = "done"
    step = plan.next_step("running", members, options, None, NOW)
    assert step == plan.End("halted", "1 of 3 VMs failed, none may")


UP = plan.Seen("running", True, NOW, 0, None, None)


def judged(seen: plan.Seen, after_s: float, **options: object) -> plan.Verdict | None:
    made = RolloutOptions.model_validate({"steady_s": 5, "timeout_s": 60, **options})
    return plan.judge(seen, made, NOW, NOW + timedelta(seconds=after_s))


def test_when_a_vm_counts_as_up() -> None:
    up = plan.Verdict("up")
    assert judged(UP, 4) is None
    assert judged(UP, 5) == up
    assert judged(UP, 5, health="agent") is None
    asked = plan.Seen("running", True, NOW, 0, None, True)
    assert judged(asked, 5, health="agent") == up
    silent = judged(UP, 60, health="agent")
    assert silent is not None
    assert (silent.outcome, "agent" in (silent.message or "")) == ("failed", True)
    for state, settled, error in (("error", True, "no kernel"), ("stopped", True, None)):
        verdict = judged(plan.Seen(state, settled, NOW, 0, error, None), 0)  # type: ignore[arg-type]
        assert verdict is not None
        assert verdict.outcome == "failed"
        assert error is None or verdict.message == error
    assert judged(plan.Seen("running", True, NOW, 1, None, None), 5) != up
    under_way = plan.Seen("error", False, NOW, 0, "of the boot before", None)
    assert judged(under_way, 59) is None
    late = judged(under_way, 60)
    assert late is not None
    assert late.outcome == "failed"
