"""The rules of a VM's life, as pure functions: what an action wants, what an observation means."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from nexus.api.common import Progress
from nexus.api.endings import FAILURES, LastExit
from nexus.api.errors import InvalidState
from nexus.api.machines import MachineStatus
from nexus.api.origins import Identity
from nexus.api.vms import VmState
from nexus.manager.db.tables import WantedPower

Action = Literal["start", "stop", "pause", "resume", "reboot", "delete"]
LoadedPower = Literal["running", "paused"]
"""What follows when a VM was loaded from a snapshot."""
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True, slots=True)
class Situation:
    """What the rules look at of one VM."""

    name: str
    state: VmState
    power: WantedPower
    boot: int
    settled: bool
    """Whether the wanted generation has come to its end on the host."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an action makes of a VM: its next desired power and boot, and its state until then."""

    power: WantedPower
    boot: int
    state: VmState


def at_rest(state: VmState, power: WantedPower, restart_at: datetime | None) -> bool:
    """Whether no VMM runs, and none will before somebody asks for one."""
    if state in ("requested", "configured", "stopped"):
        return power == "stopped"
    return state == "error" and restart_at is None


def decide(action: Action, vm: Situation) -> Wanted | None:
    """What ``action`` asks for, or None when that is wanted or true already.

    Raises InvalidState with a suggestion when the VM's state does not allow it.
    """
    if action == "delete":
        return None if vm.power == "deleted" else Wanted("deleted", vm.boot, "deleting")
    if vm.power == "deleted":
        raise InvalidState(
            f"VM {vm.name!r} is being deleted",
            suggestion="wait for it: nexus ls shows when it is gone",
        )
    if vm.state == "unknown":
        raise InvalidState(
            f"VM {vm.name!r} is on a host that does not answer",
            suggestion="look at the host: nexus host ls",
        )
    if action == "start":
        return _start(vm)
    if action == "stop":
        return _stop(vm)
    if action == "pause":
        return _pause(vm)
    return _reboot(vm) if action == "reboot" else _resume(vm)


def _start(vm: Situation) -> Wanted | None:
    if vm.state == "paused" or vm.power == "paused":
        raise InvalidState(f"VM {vm.name!r} is paused", suggestion=f"nexus resume {vm.name}")
    if vm.power == "running" and vm.state not in ("error", "stopped"):
        return None
    if vm.state == "stopping":
        raise _stopping(vm)
    prepared = vm.state in ("requested", "configured") and vm.boot == 0
    return Wanted("running", vm.boot + 1, vm.state if prepared else "requested")


def _reboot(vm: Situation) -> Wanted | None:
    if vm.power == "running" and vm.state in ("requested", "configured", "stopping"):
        return None  # a boot is on its way
    if vm.state == "stopping":
        raise _stopping(vm)
    if vm.state not in ("running", "paused", "error"):
        raise InvalidState(
            f"VM {vm.name!r} is {vm.state}, only one that runs can be rebooted",
            suggestion=f"nexus start {vm.name}",
        )
    return Wanted("running", vm.boot + 1, "requested" if vm.state == "error" else "stopping")


def restore(vm: Situation, power: LoadedPower) -> Wanted:
    """What loading one of its snapshots makes of a VM: another boot, whatever it does now.

    Raises InvalidState for one that is on its way out, or on a host that does not answer.
    """
    if vm.power == "deleted" or vm.state == "unknown":
        decide("start", vm)  # says why not
    ends = vm.state in ("running", "paused", "stopping")
    return Wanted(power, vm.boot + 1, "stopping" if ends else "requested")


def _stopping(vm: Situation) -> InvalidState:
    return InvalidState(
        f"VM {vm.name!r} is stopping",
        suggestion=f"wait until it is stopped, or: nexus stop --force {vm.name}",
    )


def _stop(vm: Situation) -> Wanted | None:
    if vm.boot == 0:
        raise InvalidState(f"VM {vm.name!r} was never started", suggestion=f"nexus start {vm.name}")
    if vm.power == "stopped" and vm.settled and vm.state == "stopped":
        return None
    return Wanted("stopped", vm.boot, "stopping")


def _pause(vm: Situation) -> Wanted | None:
    if vm.power == "paused" and vm.state in ("running", "paused"):
        return None
    if vm.state == "paused" and vm.power == "running":
        return Wanted("paused", vm.boot, "paused")
    if vm.state != "running":
        raise InvalidState(
            f"VM {vm.name!r} is {vm.state}, only a running VM can be paused",
            suggestion=f"nexus start {vm.name}" if vm.state in _AT_REST else _SOON,
        )
    return Wanted("paused", vm.boot, "running")


def _resume(vm: Situation) -> Wanted | None:
    if vm.power == "running" and vm.state in ("running", "paused"):
        return None
    if vm.state == "running" and vm.power == "paused":
        return Wanted("running", vm.boot, "running")
    if vm.state != "paused":
        raise InvalidState(
            f"VM {vm.name!r} is {vm.state}, only a paused VM can be resumed",
            suggestion=f"nexus start {vm.name}" if vm.state in _AT_REST else _SOON,
        )
    return Wanted("running", vm.boot, "paused")


_AT_REST = frozenset({"configured", "stopped", "error"})
_SOON = "wait until it runs: nexus ls shows its state"


def crashed(status: MachineStatus, power: WantedPower) -> bool:
    """Whether a VMM that should run ended by itself with an error. Once ``stopped`` is wanted the
    same machine is simply stopped."""
    ended = status.state == "stopped" and status.exit_cause in FAILURES
    return ended and power in ("running", "paused")


def seen_state(status: MachineStatus, current: VmState, power: WantedPower, boot: int) -> VmState:
    """The state a user sees when the host says ``status`` while ``power`` and ``boot`` are wanted.

    On the way to what is wanted a VM shows where it is going, not where it comes from.
    """
    if power == "deleted":
        return "deleting"
    if not settles(status, power, boot):
        if power == "stopped" and boot:
            return "stopping"
        if status.boot < boot and status.state != "configured":
            return current
    if crashed(status, power):
        return "error"
    return "requested" if status.state == "preparing" else status.state


def settles(status: MachineStatus, power: WantedPower, boot: int) -> bool:
    """Whether nothing more will come of this generation: it is as wanted, or ended otherwise."""
    if status.state == "error":
        return True
    if power in ("running", "paused"):
        told = status.devices_applied or status.devices_error is not None
        return status.boot >= boot and status.state in (power, "stopped") and told
    return power == "stopped" and status.state == ("configured" if boot == 0 else "stopped")


def changed_past_us(
    status: MachineStatus, power: WantedPower, *, settled: bool
) -> Literal["running", "paused"] | None:
    """The power that somebody gave a settled VM through its own API: from now on that is wanted.

    A VM that is on its way somewhere may show either; only a settled one tells of somebody else.
    """
    if settled and power == "running" and status.state == "paused":
        return "paused"
    if settled and power == "paused" and status.state == "running":
        return "running"
    return None


def ended_by_itself(status: MachineStatus, power: WantedPower, boot: int) -> bool:
    """Whether the boot that should run has stopped for good: from now on ``stopped`` is wanted.
    One that its restart policy starts again has not."""
    wanted_on = power in ("running", "paused") and status.boot >= boot
    ended = status.state == "stopped" and status.restart_at is None
    return wanted_on and ended and not crashed(status, power)


def went_by(status: MachineStatus, known: LastExit | None, after: VmState) -> bool:
    """Whether the machine ended by itself since it was last heard of, and runs again or tries to:
    then nothing else tells of that end."""
    last = status.last_exit
    if last is None or (known is not None and last.at <= known.at):
        return False
    return last.cause not in ("stopped", "killed") and after not in ("stopped", "error")


def told(last: LastExit) -> tuple[VmState, str, str]:
    """The state, the event's word and its sentence for an end that was heard of afterwards."""
    return ("error" if last.cause in FAILURES else "stopped", _ENDINGS[last.cause][0], last.message)


_ENDINGS: dict[str, tuple[str, str]] = {
    "guest_poweroff": ("guest_poweroff", "the guest powered itself off"),
    "stopped": ("stopped", "the guest powered off when it was asked to"),
    "killed": ("killed", "the VMM was killed: the guest did not power off in time, or by force"),
    "crashed": ("vmm_crashed", "the VMM ended by itself"),
    "guest_panic": ("guest_panic", "the guest's kernel panicked"),
    "guest_reboot": ("guest_reboot", "the guest rebooted, which ends its VMM"),
}


def told_of(before: Progress | None, now: Progress | None) -> str | None:
    """What an event says of images that are fetched: at the beginning, and after each quarter."""
    if now is None:
        return None
    begun = before is None or before.what != now.what
    if not begun and before is not None and int(before.fraction * 4) >= int(now.fraction * 4):
        return None
    return f"{now.what}: {now.fraction:.0%}"


def restarted(status: MachineStatus) -> tuple[str, str]:
    """The event for a boot that its restart policy started again."""
    times = "once" if status.restarts == 1 else f"{status.restarts} times"
    return ("restarted", f"started again by its restart policy, {times} since its last start")


def identity_changed(known: Identity | None, said: Identity) -> bool:
    """Whether it is news how the guest of a loaded VM came by its own identity, or did not."""
    if said.state == "pending":
        return False
    return known is None or (known.state, known.at) != (said.state, said.at)


def identified(identity: Identity) -> tuple[str, str]:
    """The event's word and sentence for that."""
    match identity.state:
        case "applied":
            return ("identified", "the guest has its own name, addresses and entropy")
        case "absent":
            return (
                "identity_absent",
                "no agent in the guest answers: it still has the name and addresses of the VM "
                "that its snapshot was taken of",
            )
        case _:
            said = f": {identity.message}" if identity.message else ""
            return ("identity_failed", f"the guest did not take its own name and addresses{said}")


def reason_for(before: VmState, after: VmState, status: MachineStatus) -> tuple[str, str]:
    """The event's word and sentence for a change that ``status`` tells of."""
    match after:
        case "running":
            if before == "paused":
                return ("resumed", "resumed")
            if status.restarts:
                return restarted(status)
            loaded = status.identity is not None
            return ("started", "the VMM runs" + (", loaded from a snapshot" if loaded else ""))
        case "paused":
            return ("paused", "paused")
        case "configured":
            return ("configured", "disk, network and configuration are ready")
        case "stopping":
            return ("stopping", "the guest was asked to power off")
        case "stopped" if status.exit_cause in FAILURES and status.error is not None:
            return (_ENDINGS[status.exit_cause][0], status.error.message)
        case "stopped":
            return _ENDINGS.get(status.exit_cause or "", ("stopped", "stopped"))
        case "error":
            message = status.error.message if status.error else "the host reports an error"
            if status.exit_cause == "guest_panic":
                return ("guest_panic", message)
            ran = status.error is not None and status.error.stage == "run"
            return ("vmm_crashed" if ran else "failed", message)
        case _:
            return ("preparing", "the host prepares it")
