"""Waiting until a VM has come where somebody wants it."""

import time

import anyio

from nexus.api.errors import InvalidState, NotFound, TimedOut
from nexus.api.vms import Vm, WaitState
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.services.vms import to_vm
from nexus.manager.waiters import Waiters

POLL_S = 1.0
"""How often to look without a hint: another manager may have done the work."""

_PAST_CONFIGURED = frozenset({"configured", "running", "paused", "stopped"})


async def wait_for(
    db: Database, waiters: Waiters, vm: Vm, state: WaitState, timeout_s: float
) -> Vm | None:
    """Waits until the generation of ``vm`` is in ``state``, or will not get there.

    Answers the VM as it is then, and None when it is gone. Raises TimedOut, which undoes nothing.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        with waiters.listen(vm.id) as woken:
            async with db.read() as session:
                row = await session.get(VmRow, vm.id)
            if row is None:
                return None
            if _is_over(row, vm.generation, state):
                return to_vm(row)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimedOut(
                    f"VM {vm.id} is {row.state} after {timeout_s:g} s, not {state}; "
                    "it goes on, nothing was undone",
                    suggestion=f"nexus show {row.name}",
                )
            with anyio.move_on_after(min(left_s, POLL_S)):
                await woken.wait()


def _is_over(row: VmRow, generation: int, state: WaitState) -> bool:
    if state == "deleted":
        return False
    if state == "configured" and row.state in _PAST_CONFIGURED:
        return True
    return row.settled_generation >= generation or row.power == "deleted"


def has_reached(vm: Vm | None, state: WaitState) -> bool:
    """Whether what ``wait_for`` answered is what was waited for."""
    if vm is None:
        return state == "deleted"
    if state == "configured":
        return vm.state in _PAST_CONFIGURED
    return vm.state == state


def explain(vm: Vm | None, state: WaitState) -> InvalidState | NotFound:
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
