"""Why a VM is as it is: its row, its events and the end of its log, put into words."""

from dataclasses import dataclass
from datetime import datetime

import anyio
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Progress
from nexus.api.endings import LastExit
from nexus.api.errors import NexusError, NotFound
from nexus.api.origins import Identity
from nexus.api.vms import LogChunk, LogSource, VmError, VmEvent
from nexus.api.why import VmWhy, WhyState
from nexus.manager import lifecycle
from nexus.manager.agents import Agents
from nexus.manager.db.journal_tables import VmEventRow
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, VmRow, WantedPower
from nexus.manager.services.vms import find, to_event
from nexus.manager.uow import SYSTEM

EVENTS = 50
"""So many of the last are looked at, and ``SHOWN`` of them told."""
SHOWN = 10
LOG_LINES = 20
LOG_TIMEOUT_S = 5.0
LITTLE_DISK_MIB = 64
"""A host with less left makes no new VM, and what its VMs write may not find room."""
_PANIC = "Kernel panic - not syncing"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one VM. ``events`` are its last ones, oldest first, and never empty."""

    name: str
    state: WhyState
    events: list[VmEvent]
    power: WantedPower | None = None
    """What is wanted of it; None once it is gone."""
    unsettled: bool = False
    attempts: int = 0
    """Failed calls at its host in a row."""
    error: VmError | None = None
    console: list[str] | None = None
    """The end of its console, if somebody could read it."""
    restarts: int = 0
    """How often its restart policy started it again."""
    restart_at: datetime | None = None
    """When it will do so next."""
    last_exit: LastExit | None = None
    devices_error: VmError | None = None
    """Why its VMM does not take what is wanted of its devices."""
    identity: Identity | None = None
    """Whether the guest of a loaded VM has become itself."""
    progress: Progress | None = None
    """Of images that its host fetches for it."""
    disk_left_mib: int | None = None
    """On its host."""


async def why(db: Database, agents: Agents, ref: str, project: str) -> VmWhy:
    """Raises NotFound for a VM that neither is nor has left events."""
    async with db.read() as session:
        row = await _find(session, ref, project)
        vm_id = row.id if row is not None else await _gone(session, ref, project)
        events = await _events(session, vm_id)
        host = await session.get(HostRow, row.host_id) if row is not None else None
    chunk, missing = (None, "the VM is gone") if row is None else await _log(agents, row)
    console = chunk.lines if chunk is not None and chunk.source == "console" else None
    if row is None:
        facts = Facts(name=events[-1].vm_name, state="deleted", events=events)
    else:
        facts = Facts(
            name=row.name,
            state=row.state,
            events=events,
            power=row.power,
            unsettled=row.unsettled,
            attempts=row.attempts,
            error=row.error,
            console=console,
            restarts=row.restarts,
            restart_at=row.restart_at,
            last_exit=row.last_exit,
            devices_error=row.devices_error,
            identity=row.identity,
            progress=row.progress,
            disk_left_mib=host.capacity.disk_available_mib if host is not None else None,
        )
    turn = turning_point(facts)
    tail = chunk.lines if chunk is not None else []
    if facts.error is not None and facts.error.log_tail:
        # The lines of the failure itself: the log may have gone on since.
        tail, missing = facts.error.log_tail, None
    return VmWhy(
        vm_id=vm_id,
        name=facts.name,
        state=facts.state,
        since=turn.at,
        summary=summary(facts),
        reason=turn.reason,
        actor=turn.actor,
        request_id=turn.request_id,
        error=facts.error,
        log_source=chunk.source if chunk is not None else None,
        log_tail=tail,
        log_missing=missing,
        next=next_commands(facts),
        events=events[-SHOWN:],
    )


# -- rules -------------------------------------------------------------------------------------


def turning_point(facts: Facts) -> VmEvent:
    """The event that brought the VM into its state: the first of the last ones that show it."""
    found = facts.events[-1]
    if facts.state == "deleted":
        return found
    for event in reversed(facts.events):
        if event.state != facts.state:
            break
        found = event
    return found


def summary(facts: Facts) -> str:
    """The sentence that tells why."""
    turn = turning_point(facts)
    said = _sentence(facts, turn)
    if turn.actor != SYSTEM.actor:
        said += f" (asked for by {turn.actor})"
    if facts.state == "deleted":
        return said
    if facts.state == "running" and _panicked(facts):
        said += "; its kernel panicked and hangs"
    if facts.state == "running" and _has_no_room(facts):
        said += (
            f"; its host has {facts.disk_left_mib} MiB of disk left: a guest that writes may hang"
        )
    if facts.progress is not None:
        said += f"; its host is {facts.progress.what} ({facts.progress.fraction:.0%} are there)"
    said += _of_restarts(facts)
    if facts.devices_error is not None and facts.state in ("running", "paused"):
        said += f"; {facts.devices_error.message}"
    if _is_another(facts):
        said += f"; {lifecycle.identified(facts.identity)[1]}" if facts.identity else ""
    goal = _GOALS.get(facts.power) if facts.power is not None else None
    if facts.unsettled and facts.state in ("requested", "running", "paused") and goal:
        said += f"; it is to {goal}"
    if facts.attempts and facts.state != "unknown":
        said += f"; its host was asked {facts.attempts} times in vain, and is asked again"
    return said


def _has_no_room(facts: Facts) -> bool:
    return facts.disk_left_mib is not None and facts.disk_left_mib < LITTLE_DISK_MIB


def _is_another(facts: Facts) -> bool:
    """Whether its guest still believes to be the VM that its snapshot was taken of."""
    unknown = facts.identity is not None and facts.identity.state in ("failed", "absent")
    return unknown and facts.state in ("running", "paused")


def _of_restarts(facts: Facts) -> str:
    said = ""
    if facts.restarts and facts.state in ("running", "paused", "error", "stopped"):
        times = "once" if facts.restarts == 1 else f"{facts.restarts} times"
        last = f", last because: {facts.last_exit.message}" if facts.last_exit else ""
        said = f"; its restart policy started it again {times}{last}"
    if facts.restart_at is not None and facts.state in ("error", "stopped"):
        at = facts.restart_at.isoformat(timespec="seconds")
        said += f"; it is started again at {at}"
    return said


_GOALS: dict[WantedPower, str] = {
    "running": "run",
    "paused": "be paused",
    "stopped": "be stopped",
    "deleted": "be deleted",
}
_STOPPED = {
    "guest_poweroff": "is stopped: its guest powered itself off",
    "stopped": "is stopped: its guest powered off when it was asked to",
    "killed": "is stopped: its VMM was killed, by force or because the guest took too long",
}
_PLAIN: dict[WhyState, str] = {
    "requested": "is being prepared on its host",
    "configured": "is prepared and has not been started",
    "running": "runs",
    "paused": "is paused: its processors stand still, its memory is kept",
    "stopping": "is stopping: its guest was asked to power off",
    "deleting": "is being deleted",
    "unknown": "may be in any state: its host does not answer",
    "deleted": "was deleted",
}


def _sentence(facts: Facts, turn: VmEvent) -> str:
    if facts.state == "error":
        return f"{facts.name} {_failure(facts)}"
    if facts.state == "stopped":
        plain = _STOPPED.get(turn.reason, f"is stopped: {turn.message}")
        return f"{facts.name} {plain}"
    if facts.state == "deleted" and any(event.reason == "expired" for event in facts.events):
        return f"{facts.name} was deleted because its time was up"
    return f"{facts.name} {_PLAIN[facts.state]}"


def _failure(facts: Facts) -> str:
    error = facts.error
    if error is None:
        return f"failed: {facts.events[-1].message}"
    if error.stage == "run":
        return f"ended while it ran: {error.message}"
    if error.stage == "place":
        return f"was refused by its host: {error.message}"
    return f"could not start, it failed in stage {error.stage}: {error.message}"


def _panicked(facts: Facts) -> bool:
    return any(_PANIC in line for line in facts.console or ())


def next_commands(facts: Facts) -> list[str]:
    """What to type next."""
    name = facts.name
    match facts.state:
        case "requested":
            return [f"nexus show {name}", "nexus host ls"]
        case "configured":
            return [f"nexus start {name}"]
        case "running" if _panicked(facts):
            return [f"nexus stop --force {name}", f"nexus logs {name} --tail 100"]
        case "running" if _has_no_room(facts):
            return ["nexus usage", "nexus snapshot ls", f"nexus logs {name} --tail 100"]
        case "running" if _is_another(facts):
            return [f"nexus reboot {name}", f"nexus console {name}"]
        case "running":
            return [f"nexus console {name}", f"nexus logs -f {name}"]
        case "paused":
            return [f"nexus resume {name}"]
        case "stopping":
            return [f"nexus stop --force {name}", f"nexus logs {name}"]
        case "stopped":
            return [f"nexus start {name}", f"nexus logs {name}"]
        case "error" if facts.restart_at is not None:
            return [f"nexus logs {name}", f"nexus stop {name}"]
        case "error":
            return [f"nexus logs {name} --source {log_of(facts.error)}", f"nexus start {name}"]
        case "deleting" | "unknown":
            return ["nexus host ls", f"nexus events {name}"]
        case _:
            return ["nexus ls"]


def log_of(error: VmError | None) -> LogSource:
    """The log that tells most: what the VMM said of itself, or what the guest said."""
    if error is None or "panicked" in error.message:
        return "console"
    return "vmm"


# -- what it is told from ------------------------------------------------------------------------


async def _find(session: AsyncSession, ref: str, project: str) -> VmRow | None:
    try:
        return await find(session, project, ref)
    except NotFound:
        return None


async def _gone(session: AsyncSession, ref: str, project: str) -> str:
    """The id of the VM that last had this id or name."""
    query = select(VmEventRow.vm_id).where(VmEventRow.project == project)
    for condition in (VmEventRow.vm_id == ref, VmEventRow.vm_name == ref):
        newest = query.where(condition).order_by(VmEventRow.id.desc()).limit(1)
        if vm_id := await session.scalar(newest):
            return vm_id
    raise NotFound(
        f"there is no VM {ref!r}, and no event tells of one",
        suggestion="nexus ls",
    )


async def _events(session: AsyncSession, vm_id: str) -> list[VmEvent]:
    query = select(VmEventRow).where(VmEventRow.vm_id == vm_id)
    rows = (await session.scalars(query.order_by(VmEventRow.id.desc()).limit(EVENTS))).all()
    return [to_event(row) for row in reversed(rows)]


async def _log(agents: Agents, row: VmRow) -> tuple[LogChunk | None, str | None]:
    source = log_of(row.error)
    try:
        with anyio.fail_after(LOG_TIMEOUT_S):
            return await agents.of(row.host_id).logs(row.id, source, tail=LOG_LINES), None
    except TimeoutError:
        return None, "its host does not answer in time"
    except NexusError as error:
        return None, error.message
