"""Waiting until a VM has come where somebody wants it."""

import time
from collections.abc import Mapping, Sequence

import anyio
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.devices import DeviceWait
from nexus.api.errors import InvalidState, NotFound, TimedOut
from nexus.api.vms import Vm, VmState, WaitState
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.services.vms import to_vm
from nexus.manager.waiters import Waiters

POLL_S = 1.0
"""How often to look without a hint: another manager may have done the work."""

Awaited = WaitState | DeviceWait

GATHER_S = 0.02
_PAST_CONFIGURED = frozenset({"configured", "running", "paused", "stopped"})


async def wait_for(
    db: Database, waiters: Waiters, vm: Vm, state: Awaited, timeout_s: float
) -> Vm | None:
    """Waits until the generation of ``vm`` is in ``state``, or will not get there.

    Answers the VM as it is then, and None when it is gone. Raises TimedOut, which undoes nothing.
    """
    seen = await wait_for_all(db, waiters, [vm], state, timeout_s)
    if vm.id not in seen:
        raise timed_out(vm, state, timeout_s)
    return seen[vm.id]


async def wait_for_all(
    db: Database, waiters: Waiters, vms: Sequence[Vm], state: Awaited, timeout_s: float
) -> dict[str, Vm | None]:
    """Waits until each of ``vms`` is in ``state``, or will not get there, or the time is up.

    Answers those that have come to an end, as they are then, by their ids, and None for those that
    are gone. What is missing from it was still on its way.
    """
    deadline = time.monotonic() + timeout_s
    pending = {vm.id: vm.generation for vm in vms}
    seen: dict[str, Vm | None] = {}
    while True:
        with waiters.listen(*pending) as woken:
            async with db.read() as session:
                ended = await _ended(session, pending, state)
            seen.update(ended)
            pending = {vm_id: wanted for vm_id, wanted in pending.items() if vm_id not in ended}
            left_s = deadline - time.monotonic()
            if not pending or left_s <= 0:
                return seen
            with anyio.move_on_after(min(left_s, POLL_S)):
                await woken.wait()
        if len(pending) > 1:
            # Many that come at once are one look.
            await anyio.sleep(GATHER_S)


async def _ended(
    session: AsyncSession, pending: Mapping[str, int], state: Awaited
) -> dict[str, Vm | None]:
    """Those of the VMs that are gone, or for which ``state`` was reached or is out of reach."""
    columns = select(VmRow.id, VmRow.state, VmRow.power, VmRow.settled_generation)
    rows = (await session.execute(columns.where(VmRow.id.in_(pending)))).all()
    ended: dict[str, Vm | None] = dict.fromkeys(pending.keys() - {row[0] for row in rows})
    over = [
        vm_id
        for vm_id, now, power, settled in rows
        if _is_over(state, now, settled=settled >= pending[vm_id] or power == "deleted")
    ]
    if over:
        for row in await session.scalars(select(VmRow).where(VmRow.id.in_(over))):
            ended[row.id] = to_vm(row)
    return ended


def _is_over(wanted: Awaited, now: VmState, *, settled: bool) -> bool:
    if wanted == "deleted":
        return False
    return settled or (wanted == "configured" and now in _PAST_CONFIGURED)


def timed_out(vm: Vm, state: Awaited, timeout_s: float) -> TimedOut:
    """The error for a VM that was still on its way when the time was up."""
    return TimedOut(
        f"VM {vm.id} ({vm.name}) is not {state} after {timeout_s:g} s; "
        "it goes on, nothing was undone",
        suggestion=f"nexus show {vm.name}",
    )


def has_reached(vm: Vm | None, state: WaitState) -> bool:
    """Whether what ``wait_for`` answered is what was waited for."""
    if vm is None:
        return state == "deleted"
    if state == "configured":
        return vm.state in _PAST_CONFIGURED
    return vm.state == state


def explain(vm: Vm | None, state: Awaited) -> InvalidState | NotFound:
    """Why the state was not reached, with the VM's own error and what to do."""
    if vm is None:
        return NotFound("the VM was deleted meanwhile", suggestion="nexus ls")
    if vm.error is not None:
        return InvalidState(
            f"VM {vm.name!r} is in error ({vm.error.stage}): {vm.error.message}",
            suggestion=vm.error.suggestion or f"nexus logs {vm.name} --source vmm",
            fault_message=vm.error.fault_message,
        )
    return InvalidState(
        f"VM {vm.name!r} is {vm.state}, not {state}", suggestion=f"nexus show {vm.name}"
    )
