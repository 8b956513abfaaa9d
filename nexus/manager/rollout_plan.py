"""The rules of rollouts, as pure functions: what comes next, and whether a VM is up."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from nexus.api.rollouts import MemberState, RolloutAction, RolloutOptions, RolloutState
from nexus.api.vms import VmState

BUSY: frozenset[MemberState] = frozenset({"updating", "reverting"})
TOUCHED: frozenset[MemberState] = frozenset({"done", "failed"})
"""What a rollback takes back."""
ENDS: frozenset[RolloutState] = frozenset({"done", "cancelled", "rolled_back"})
ACTIVE: frozenset[RolloutState] = frozenset({"running", "halted", "rolling_back"})


@dataclass(frozen=True, slots=True)
class Begin:
    """Change these VMs now: positions among the members."""

    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """VMs are on their way."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing before this time."""

    until: datetime


@dataclass(frozen=True, slots=True)
class End:
    """The rollout comes into this state."""

    state: RolloutState
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """Nothing is left to do until somebody asks for something."""


Step = Begin | Wait | Rest | End | Settled


def batch_of(options: RolloutOptions, members: int) -> int:
    """How many VMs at a time; a percentage is of all members, rounded up."""
    if isinstance(options.batch, int):
        return options.batch
    return max(1, -(-members * int(options.batch.rstrip("%")) // 100))


def next_step(
    state: RolloutState,
    members: Sequence[MemberState],
    options: RolloutOptions,
    rest_until: datetime | None,
    now: datetime,
) -> Step:
    """What a rollout does next; the same answer for the same facts.

    A batch begins when the one before has come to its end. With too many failures none begins
    any more, and the rollout halts when those under way have ended.
    """
    if any(member in BUSY for member in members):
        return Wait()
    batch = batch_of(options, len(members))
    if state == "running":
        failed = members.count("failed")
        if failed > options.max_failures:
            may = "none may" if options.max_failures == 0 else f"{options.max_failures} may"
            return End("halted", f"{failed} of {len(members)} VMs failed, {may}")
        waiting = [index for index, member in enumerate(members) if member == "pending"]
        if not waiting:
            return End("done")
        if rest_until is not None and now < rest_until:
            return Rest(rest_until)
        return Begin(tuple(waiting[:batch]))
    if state == "rolling_back":
        touched = [index for index, member in enumerate(members) if member in TOUCHED]
        if touched:
            return Begin(tuple(touched[:batch]))
        stuck = members.count("not_reverted")
        return End("rolled_back", f"{stuck} VMs could not be taken back" if stuck else None)
    return Settled()


def allowed(action: RolloutAction, state: RolloutState) -> RolloutState | None:
    """The state that an action brings a rollout into; its own when that is so already; None when
    the action is not allowed there."""
    table: dict[RolloutAction, dict[RolloutState, RolloutState]] = {
        "halt": {"running": "halted", "halted": "halted"},
        "resume": {"halted": "running", "running": "running"},
        "cancel": {"running": "cancelled", "halted": "cancelled", "cancelled": "cancelled"},
        "rollback": {
            "running": "rolling_back",
            "halted": "rolling_back",
            "cancelled": "rolling_back",
            "done": "rolling_back",
            "rolling_back": "rolling_back",
            "rolled_back": "rolled_back",
        },
    }
    return table[action].get(state)


def after(action: RolloutAction, member: MemberState) -> MemberState:
    """A VM's state after an action on its rollout: a resume tries those again that failed."""
    if action == "resume" and member == "failed":
        return "pending"
    if action in ("cancel", "rollback") and member == "pending":
        return "skipped"
    return member


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a VM that was told to boot with another configuration."""

    state: VmState
    settled: bool
    """Whether what it was told has come to its end on the host."""
    ran_since: datetime | None
    restarts: int
    error: str | None
    agent_answers: bool | None
    """None when nobody has asked."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it ended for a VM."""

    outcome: Literal["up", "failed"]
    message: str | None = None


def judge(seen: Seen, options: RolloutOptions, begun_at: datetime, now: datetime) -> Verdict | None:
    """Whether a VM is up, has failed, or is still on its way (None)."""
    if seen.settled and seen.state == "error":
        return Verdict("failed", seen.error or "it is in error")
    if seen.settled and seen.state in ("stopped", "configured"):
        return Verdict("failed", f"it is {seen.state}")
    if seen.settled and seen.state in ("running", "paused"):
        if seen.restarts:
            return Verdict("failed", "it does not stay up: its restart policy started it again")
        steady = timedelta(seconds=options.steady_s)
        ran = seen.ran_since is not None and now >= seen.ran_since + steady
        if ran and (options.health == "running" or seen.agent_answers):
            return Verdict("up")
    if now >= begun_at + timedelta(seconds=options.timeout_s):
        missing = "its guest's agent does not answer" if seen.state == "running" else seen.state
        return Verdict("failed", f"not up within {options.timeout_s:g} s: {missing}")
    return None


def counted(members: Sequence[MemberState]) -> Counter[MemberState]:
    """How many members are in which state."""
    return Counter(members)
