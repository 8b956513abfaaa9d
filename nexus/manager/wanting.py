"""What is wanted of a VM, written into its row: the counterpart of ``observe``."""

from nexus.manager import lifecycle
from nexus.manager.db.tables import VmRow
from nexus.manager.uow import UnitOfWork

_VERB: dict[lifecycle.Action, str] = {
    "start": "starting",
    "stop": "stopping",
    "pause": "pausing",
    "resume": "resuming",
    "reboot": "rebooting",
    "delete": "deleting",
}


def act(
    unit: UnitOfWork,
    row: VmRow,
    action: lifecycle.Action,
    *,
    stop_timeout_s: float | None = None,
    because: tuple[str, str] | None = None,
) -> bool:
    """Writes what ``action`` wants of a locked row, with its event; False when that is so already.

    ``because`` is the event's reason and message, when it is not the action's own. Raises
    InvalidState with what to do instead.
    """
    situation = lifecycle.Situation(row.name, row.state, row.power, row.boot, not row.unsettled)
    wanted = lifecycle.decide(action, situation)
    if wanted is None:
        return False
    row.power, row.boot = wanted.power, wanted.boot
    if stop_timeout_s is not None:
        row.stop_timeout_s = stop_timeout_s
    anew(unit, row)
    if row.state != wanted.state or because is not None:
        row.state, row.error = wanted.state, None
        reason, message = because or (f"{action}_requested", _VERB[action])
        unit.event(row, wanted.state, reason, message)
    return True


def change(unit: UnitOfWork, row: VmRow, reason: str, message: str) -> None:
    """Notes that something else is wanted of a VM, whatever its state."""
    anew(unit, row)
    unit.event(row, row.state, reason, message)


def boot_anew(unit: UnitOfWork, row: VmRow, reason: str, message: str) -> None:
    """Wants the next boot of a VM that is wanted running, also when a boot is on its way."""
    row.boot += 1
    anew(unit, row)
    row.state = "stopping" if row.state in ("running", "stopping") else "requested"
    row.error = None
    unit.event(row, row.state, reason, message)


def anew(unit: UnitOfWork, row: VmRow) -> None:
    """Begins a new generation: the agent has to be told."""
    row.generation += 1
    row.wanted_by, row.wanted_in = unit.caller.actor, unit.caller.request_id
    row.unsettled, row.next_attempt_at, row.attempts = True, unit.at, 0
    row.updated_at = unit.at


def shown(row: VmRow) -> dict[str, object]:
    """The wish as the audit keeps it."""
    return {"power": row.power, "boot": row.boot, "state": row.state}
