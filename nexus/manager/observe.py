"""What a host says of a VM, written into the VM's row: the one place where observations land."""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.machines import Blob, Machine, MachineNic, MachineStatus
from nexus.api.origins import Origin
from nexus.api.vms import VmError, VmState
from nexus.manager import devices, lifecycle
from nexus.manager.db.columns import StoredImage
from nexus.manager.db.tables import VmRow, WantedPower
from nexus.manager.uow import SYSTEM, Caller, vm_event

STILL_WORKING_S = 0.5
"""When to ask again after an agent that has not come to an end yet."""


def machine_of(row: VmRow) -> Machine:
    """What the agent is told of a VM. The row must not be wanted ``deleted``."""
    if row.power == "deleted":
        raise ValueError(f"VM {row.id} is wanted deleted")
    return Machine(
        id=row.id,
        name=row.name,
        generation=row.generation,
        power=row.power,
        boot=row.boot,
        vcpu=row.vcpu,
        mem_mib=row.mem_mib,
        kernel=_blob(row.kernel),
        initrd=_blob(row.initrd) if row.initrd else None,
        rootfs=_blob(row.rootfs) if row.rootfs else None,
        kernel_args=row.kernel_args,
        nics=[
            MachineNic(
                iface=nic.iface,
                mac=nic.mac,
                ip=nic.ip,
                gateway=nic.gateway,
                dns=nic.dns,
                limits=nic.limits,
                network=None if nic.home else nic.network_id,
            )
            for nic in row.nics
        ],
        rootfs_size_mib=row.rootfs_size_mib,
        rootfs_limits=row.rootfs_limits,
        drives=[devices.for_agent(drive) for drive in row.drives],
        balloon=row.balloon,
        user_data=row.user_data,
        vendor_data=row.vendor_data,
        config_drive=row.config_drive,
        ssh_keys=row.ssh_keys,
        stop_timeout_s=row.stop_timeout_s,
        restart_policy=row.restart_policy,
        expires_at=row.expires_at,
        origin=Origin(snapshot=row.origin.id, boot=row.origin.boot) if row.origin else None,
        root_boot=row.root_boot,
        track_dirty_pages=row.track_dirty_pages,
    )


def _blob(image: StoredImage) -> Blob:
    return Blob(sha256=image.sha256, size_bytes=image.size_bytes)


def is_news(row: VmRow, status: MachineStatus) -> bool:
    """Whether a status may change the row: same generation, and not older than what is known."""
    if row.power == "deleted" or status.generation != row.generation:
        return False
    return row.observed_at is None or status.observed_at >= row.observed_at


def is_behind(row: VmRow, status: MachineStatus) -> bool:
    """Whether the host holds an older generation of a VM that was believed settled."""
    newer = row.observed_at is None or status.observed_at > row.observed_at
    return newer and not row.unsettled and status.generation < row.generation


def apply(
    session: AsyncSession,
    row: VmRow,
    status: MachineStatus,
    now: datetime,
    at_api: Caller | None = None,
) -> None:
    """Writes a status into the row, with the events that tell of it. Twice is once.

    ``at_api`` is who is at the VM's own API at this moment: what happened past us is theirs.
    """
    if not is_news(row, status):
        return
    before = row.state
    power, boot = row.power, row.boot
    past_us = lifecycle.changed_past_us(status, power, settled=not row.unsettled)
    caller = caller_of(row) if row.unsettled else SYSTEM
    if past_us is not None and at_api is not None:
        caller = at_api
    after = lifecycle.seen_state(status, before, power, boot)
    newly_configured = status.configured_at is not None and (
        row.configured_at is None or status.configured_at > row.configured_at
    )
    refused_before = row.devices_error
    known_as = row.identity
    told = lifecycle.told_of(row.progress, status.progress)
    ended_unseen = lifecycle.went_by(status, row.last_exit, after)
    _copy(row, status)
    if newly_configured and status.configured_at and after != "configured":
        _event(
            session,
            caller,
            row,
            status.configured_at,
            "configured",
            "configured",
            "disk, network and configuration are ready",
        )
    if ended_unseen and status.last_exit is not None:
        state, reason, message = lifecycle.told(status.last_exit)
        _event(session, SYSTEM, row, status.last_exit.at, state, reason, message)
        if after == before and status.restarts:
            again_at = status.started_at or now
            _event(session, SYSTEM, row, again_at, after, *lifecycle.restarted(status))
    if told is not None:
        _event(session, caller, row, now, after, "fetching", told)
    if after != before:
        reason, message = lifecycle.reason_for(before, after, status)
        if before == "unknown":
            reason, message = "host_back", f"the host answers again; {message}"
        at = now if reason == "resumed" else _moment(status, after, now)
        _event(session, caller, row, at, after, reason, message)
        row.state = after
    if status.devices_error is not None and status.devices_error != refused_before:
        said = status.devices_error.message
        _event(session, caller, row, now, after, "devices_refused", said)
    elif refused_before is not None and status.devices_applied and after in ("running", "paused"):
        said = "the VMM has taken what is wanted of its devices"
        _event(session, caller, row, now, after, "devices_applied", said)
    if status.identity is not None and lifecycle.identity_changed(known_as, status.identity):
        _event(session, SYSTEM, row, now, after, *lifecycle.identified(status.identity))
        row.updated_at = now
    error = _error(status) if after == "error" else None
    if after != before or row.error != error:
        row.updated_at = now
    row.error = error
    if lifecycle.settles(status, power, boot):
        settle(row)
    elif row.unsettled:
        row.next_attempt_at = now + timedelta(seconds=STILL_WORKING_S)
    if lifecycle.ended_by_itself(status, power, boot):
        want(row, "stopped", SYSTEM, now)
    if past_us is not None:
        want(row, past_us, caller, now)


def fail(session: AsyncSession, row: VmRow, error: VmError, now: datetime) -> None:
    """Puts a VM into ``error`` because its host refused it."""
    row.state, row.error, row.updated_at = "error", error, now
    settle(row)
    _event(session, caller_of(row), row, now, "error", "failed", error.message)


def settle(row: VmRow) -> None:
    """Notes that nothing more will come of the wanted generation."""
    row.unsettled = False
    row.settled_generation = row.generation
    row.attempts = 0


def unsettle(row: VmRow, now: datetime) -> None:
    """Has the pipeline tell the agent again."""
    row.unsettled = True
    row.next_attempt_at = now
    row.attempts = 0


def want(row: VmRow, power: WantedPower, caller: Caller, now: datetime) -> None:
    """What happened without being asked for here is what is wanted from now on: the guest ended
    its own boot, or somebody paused or resumed it through its own API."""
    row.power = power
    row.generation += 1
    row.wanted_by, row.wanted_in = caller.actor, caller.request_id
    unsettle(row, now)


def lose_host(session: AsyncSession, row: VmRow, now: datetime) -> None:
    """Notes that nobody can say how the VM is."""
    if row.state in ("unknown", "deleting"):
        return
    row.state, row.updated_at = "unknown", now
    _event(session, SYSTEM, row, now, "unknown", "host_lost", "its host does not answer")


def caller_of(row: VmRow) -> Caller:
    """Who wanted what is wanted of the VM now."""
    return Caller(
        actor=row.wanted_by, project=row.project, request_id=row.wanted_in, permission="vms:write"
    )


def _error(status: MachineStatus) -> VmError:
    return status.error or VmError(
        stage="run",
        message="the VMM ended by itself",
        suggestion="read its log: nexus logs NAME --source vmm",
    )


def _copy(row: VmRow, status: MachineStatus) -> None:
    taps = {nic.iface: nic.tap for nic in status.nics}
    nics = [nic.model_copy(update={"tap": taps.get(nic.iface, nic.tap)}) for nic in row.nics]
    if nics != row.nics:
        row.nics = nics
    row.engine = status.engine
    row.pid = status.pid
    row.socket = status.socket
    row.configured_at = status.configured_at
    row.started_at = status.started_at
    row.observed_at = status.observed_at
    row.restarts, row.restart_at = status.restarts, status.restart_at
    row.last_exit = status.last_exit
    row.devices_error = status.devices_error
    row.identity = status.identity
    row.progress = status.progress


def _moment(status: MachineStatus, state: VmState, now: datetime) -> datetime:
    """When the change to ``state`` happened on the host, as far as the host says."""
    if state == "configured":
        return status.configured_at or now
    if state == "running":
        return status.started_at or now
    if state in ("stopped", "error"):
        return status.exited_at or now
    return now


def _event(
    session: AsyncSession,
    caller: Caller,
    row: VmRow,
    at: datetime,
    state: VmState,
    reason: str,
    message: str,
) -> None:
    session.add(vm_event(caller, row, at, state, reason, message))
