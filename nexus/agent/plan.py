"""What to do next for one machine: pure rules, no I/O."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from nexus.agent import restarts
from nexus.agent.record import Phase
from nexus.agent.restarts import FRESH, Restarts
from nexus.api.endings import ExitCause
from nexus.api.machines import Machine, MachineState
from nexus.api.vms import VmError


class Step(Enum):
    NOTHING = auto()
    PREPARE = auto()
    """Disk and files, no process."""
    START = auto()
    """Prepare what is missing, TAPs, and a VMM."""
    RESTART = auto()
    """The same for a boot that ended by itself, by the restart policy."""
    AWAIT_API = auto()
    """The VMM was started: wait until it says that the guest runs."""
    PAUSE = auto()
    RESUME = auto()
    TUNE = auto()
    """Tell the VMM the limits, sizes and balloon target that are wanted by now."""
    ASK_STOP = auto()
    AWAIT_EXIT = auto()
    KILL = auto()
    SHED = auto()
    """Nothing runs, and volumes lie in its root that it shall not have any more."""
    SETTLE = auto()
    """A VMM that was begun is not there: write down how it ended, and clear up after it."""


@dataclass(frozen=True)
class Seen:
    """The facts about one machine on this host."""

    phase: Phase
    boot: int
    """The last boot that was begun."""
    alive: bool
    """There is a VMM process."""
    paused: bool = False
    stop_asked_at: datetime | None = None
    tuned: bool = True
    """There is nothing to tell the VMM of its devices, or it has just refused and rests."""
    exit_cause: ExitCause | None = None
    restarts: Restarts = FRESH
    laden: bool = False
    """Its root has names for volumes that are no longer wanted."""


def plan(desired: Machine, seen: Seen, now: datetime) -> Step:
    """The next step; the same answer for the same facts."""
    wants_life = desired.power != "stopped"
    if seen.alive:
        return _plan_alive(desired, seen, now, wants_life=wants_life)
    if seen.phase in ("starting", "running"):
        return Step.SETTLE
    if wants_life and desired.boot > seen.boot:
        return Step.START
    due_at = restart_at(desired, seen)
    if due_at is not None and now >= due_at:
        return Step.RESTART
    if seen.phase == "new":
        return Step.PREPARE
    return Step.SHED if seen.laden else Step.NOTHING


def restart_at(desired: Machine, seen: Seen) -> datetime | None:
    """When a boot that ended is started again by itself; None when it is not."""
    ended = not seen.alive and seen.phase == "ended" and desired.boot == seen.boot
    if not ended or desired.power == "stopped" or not seen.restarts.ran:
        return None
    if not restarts.wanted(desired.restart_policy, seen.exit_cause):
        return None
    return seen.restarts.due_at


def wants_load(desired: Machine, boot: int) -> bool:
    """Whether the next boot of a machine that has had ``boot`` of them is loaded instead."""
    origin = desired.origin
    return (
        origin is not None
        and desired.power != "stopped"
        and desired.boot == origin.boot
        and desired.boot > boot
    )


def wants_new_root(desired: Machine, root_boot: int) -> bool:
    """Whether the root disk is made anew before the next boot; ``root_boot`` is for which boot it
    last was. One that was begun and not noted is begun again: no guest has seen it yet."""
    return desired.root_boot is not None and root_boot < desired.root_boot <= desired.boot


def _plan_alive(desired: Machine, seen: Seen, now: datetime, *, wants_life: bool) -> Step:
    if seen.stop_asked_at is not None:
        # A guest that was asked to stop is on its way down, whatever is wanted by now.
        patience = timedelta(seconds=desired.stop_timeout_s)
        return Step.KILL if now >= seen.stop_asked_at + patience else Step.AWAIT_EXIT
    if not wants_life or desired.boot > seen.boot:
        # What a guest writes while it goes down is replaced by what is loaded.
        lost = wants_load(desired, seen.boot)
        at_once = desired.stop_timeout_s == 0 or seen.phase == "starting" or lost
        return Step.KILL if at_once else Step.ASK_STOP
    if seen.phase != "running":
        return Step.AWAIT_API
    if desired.power == "paused" and not seen.paused:
        return Step.PAUSE
    if desired.power == "running" and seen.paused:
        return Step.RESUME
    return Step.NOTHING if seen.tuned else Step.TUNE


def state_of(seen: Seen, error: VmError | None) -> MachineState:
    """The one word for those facts. A VMM that died while it ran is ``stopped``, with an error."""
    if seen.alive:
        if seen.stop_asked_at is not None:
            return "stopping"
        if seen.phase != "running":
            return "preparing"
        return "paused" if seen.paused else "running"
    if error is not None and error.stage != "run":
        return "error"
    if seen.phase == "ended":
        return "stopped"
    return "configured" if seen.phase == "configured" else "preparing"
