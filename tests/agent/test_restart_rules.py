"""Restart policies for any history: a state machine over the pure rules, with its own clock."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nexus.agent import restarts
from nexus.agent.plan import Seen, Step, plan, restart_at
from nexus.agent.restarts import FRESH, MOST_S, STEADY_S
from nexus.api.endings import FAILURES, ExitCause, RestartPolicy
from tests.agent.harness import a_wish

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
BY_ITSELF: tuple[ExitCause, ...] = ("crashed", "guest_panic", "guest_poweroff", "guest_reboot")


class Life(RuleBasedStateMachine):
    """One machine, whose owner takes every step the plan asks for as soon as it is due."""

    @initialize(policy=st.sampled_from(["never", "on-failure", "always"]))
    def begin(self, policy: RestartPolicy) -> None:
        self.now = BEGIN
        self.desired = a_wish(restart_policy=policy)
        self.seen = Seen("new", 0, alive=False)
        self.started_at = BEGIN
        self.starts: list[tuple[int, datetime]] = []
        self.attempt_fails = False
        self.owner()

    def owner(self) -> None:
        """Takes steps until there is nothing left to do now."""
        for _ in range(20):
            match plan(self.desired, self.seen, self.now):
                case Step.NOTHING:
                    return
                case Step.PREPARE:
                    self.become(phase="configured")
                case Step.START:
                    self.become(boot=self.desired.boot, restarts=FRESH)
                    self.start()
                case Step.RESTART:
                    attempt = restarts.before_attempt(self.seen.restarts, self.now)
                    self.become(restarts=attempt)
                    if self.attempt_fails:
                        return
                    self.start()
                case Step.ASK_STOP | Step.KILL | Step.AWAIT_EXIT:
                    self.end("stopped")
                case step:
                    raise AssertionError(step)
        raise AssertionError("it does not come to rest")

    def become(self, **change: object) -> None:
        facts = {**self.seen.__dict__, **change}
        self.seen = Seen(**facts)  # type: ignore[arg-type]

    def start(self) -> None:
        self.starts.append((self.seen.restarts.in_a_row, self.now))
        self.started_at = self.now
        running = restarts.after_start(self.seen.restarts)
        self.become(phase="running", alive=True, exit_cause=None, restarts=running)

    def end(self, cause: ExitCause) -> None:
        ended = restarts.after_end(self.seen.restarts, self.now - self.started_at, self.now)
        self.become(phase="ended", alive=False, exit_cause=cause, restarts=ended)

    @precondition(lambda self: self.seen.alive)
    @rule(cause=st.sampled_from(BY_ITSELF))
    def ends_by_itself(self, cause: ExitCause) -> None:
        self.end(cause)
        wanted = self.desired.restart_policy == "always" or (
            self.desired.restart_policy == "on-failure" and cause in FAILURES
        )
        assert (restart_at(self.desired, self.seen) is not None) == wanted
        self.owner()

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 59.0, STEADY_S]))
    def time_goes_on(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.owner()

    @rule()
    def operator_stops(self) -> None:
        self.desire(power="stopped")
        assert not self.seen.alive

    @rule()
    def operator_starts_or_reboots(self) -> None:
        self.desire(power="running", boot=self.desired.boot + 1)
        assert self.seen.alive
        assert self.seen.restarts.count == 0

    @rule(fails=st.booleans())
    def restarts_do_not_succeed(self, fails: bool) -> None:
        self.attempt_fails = fails

    def desire(self, **change: object) -> None:
        self.desired = self.desired.model_copy(update=change)
        self.owner()

    @invariant()
    def what_was_stopped_stays_stopped(self) -> None:
        if self.desired.power == "stopped":
            assert not self.seen.alive
            assert restart_at(self.desired, self.seen) is None

    @invariant()
    def no_policy_is_impatient(self) -> None:
        """Between two starts in a row lies the rest that their number asks for."""
        for (_, before), (in_a_row, at) in zip(self.starts, self.starts[1:], strict=False):
            if in_a_row > 1:
                assert (at - before).total_seconds() >= restarts.rest_s(in_a_row - 1) - 1e-6

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        due_at = restart_at(self.desired, self.seen)
        if due_at is not None:
            assert due_at - self.now <= timedelta(seconds=MOST_S)

    @invariant()
    def never_is_never(self) -> None:
        if self.desired.restart_policy == "never":
            assert self.seen.restarts.count == 0


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_rests_grow_to_a_minute() -> None:
    assert [restarts.rest_s(n) for n in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("cause", ["crashed", "guest_poweroff"])
def test_a_guest_that_never_ran_is_not_tried_again(cause: ExitCause) -> None:
    assert not FRESH.ran
    life = Life()
    life.begin("always")
    life.become(phase="ended", alive=False, exit_cause=cause, restarts=FRESH)
    assert plan(life.desired, life.seen, life.now) is Step.NOTHING
