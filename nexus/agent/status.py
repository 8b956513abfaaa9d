"""What an agent says of one machine."""

from datetime import UTC, datetime

from nexus.agent.layout import VmPaths, tap_name
from nexus.agent.plan import Seen, restart_at, state_of
from nexus.agent.record import Record
from nexus.agent.tuning import wanted
from nexus.api.common import Progress
from nexus.api.machines import Machine, MachineNicStatus, MachineStatus
from nexus.api.vms import VmError


def status_of(
    desired: Machine,
    record: Record,
    seen: Seen,
    paths: VmPaths,
    *,
    pid: int | None,
    refusal: VmError | None,
    progress: Progress | None = None,
) -> MachineStatus:
    """What is true now; the same answer for the same facts, but for its time."""
    applied = not seen.alive or record.told == wanted(desired)
    return MachineStatus(
        id=desired.id,
        generation=desired.generation,
        state=state_of(seen, record.error),
        boot=record.boot,
        engine=record.engine,
        pid=pid if seen.alive else None,
        socket=str(paths.socket),
        nics=[
            MachineNicStatus(iface=nic.iface, tap=tap_name(desired.id, index))
            for index, nic in enumerate(desired.nics)
        ],
        configured_at=record.configured_at,
        started_at=record.started_at,
        exited_at=record.exited_at,
        exit_cause=record.exit_cause,
        error=record.error,
        observed_at=datetime.now(UTC),
        devices_applied=applied,
        devices_error=None if applied else refusal,
        restarts=record.restarts.count,
        restart_at=restart_at(desired, seen),
        last_exit=record.last_exit,
        progress=progress,
        identity=record.identity,
    )
