"""``/v1/vms/{id}/start|stop|reboot|pause|resume`` and ``DELETE /v1/vms/{id}``."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from nexus.api.common import Ok
from nexus.api.vms import Vm, WaitState
from nexus.manager.keys import Done
from nexus.manager.lifecycle import Action
from nexus.manager.routes.parts import (
    STOP_TIMEOUT_S,
    WAIT_S,
    StopTimeout_s,
    VmRef,
    Wait,
    Wait_s,
    Writer,
)
from nexus.manager.runtime import Nexus, Runtime, caller_of
from nexus.manager.security import Principal
from nexus.manager.services.waits import explain, has_reached, wait_for

router = APIRouter(prefix="/v1/vms", tags=["vms"])

LONGEST_WAIT_S = 600.0


@router.post("/{ref}/start")
async def start(
    ref: VmRef,
    request: Request,
    nexus: Nexus,
    principal: Writer,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Ok:
    """Boots a VM that is configured, stopped or in error."""
    return await _act(nexus, request, principal, "start", ref, wait, timeout_s)


@router.post("/{ref}/stop")
async def stop(
    ref: VmRef,
    request: Request,
    nexus: Nexus,
    principal: Writer,
    wait: Wait = None,
    timeout_s: StopTimeout_s = STOP_TIMEOUT_S,
    force: Annotated[bool, Query(description="Kill the VMM at once.")] = False,
) -> Ok:
    """Asks the guest to power off; kills the VMM after ``timeout_s``, or at once with ``force``.

    ``wait`` holds for ``timeout_s`` and 50 s more.
    """
    grace_s = 0.0 if force else timeout_s
    wait_s = min(LONGEST_WAIT_S, timeout_s + 50)
    return await _act(nexus, request, principal, "stop", ref, wait, wait_s, stop_timeout_s=grace_s)


@router.post("/{ref}/reboot")
async def reboot(
    ref: VmRef,
    request: Request,
    nexus: Nexus,
    principal: Writer,
    wait: Wait = None,
    timeout_s: StopTimeout_s = STOP_TIMEOUT_S,
    force: Annotated[bool, Query(description="Kill the VMM at once.")] = False,
) -> Ok:
    """Stops a VM as ``stop`` does and boots it again.

    ``wait`` holds for ``timeout_s`` and 50 s more.
    """
    grace_s = 0.0 if force else timeout_s
    wait_s = min(LONGEST_WAIT_S, timeout_s + 50)
    return await _act(
        nexus, request, principal, "reboot", ref, wait, wait_s, stop_timeout_s=grace_s
    )


@router.post("/{ref}/pause")
async def pause(
    ref: VmRef,
    request: Request,
    nexus: Nexus,
    principal: Writer,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Ok:
    """Halts a running VM's processors; its memory stays."""
    return await _act(nexus, request, principal, "pause", ref, wait, timeout_s)


@router.post("/{ref}/resume")
async def resume(
    ref: VmRef,
    request: Request,
    nexus: Nexus,
    principal: Writer,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Ok:
    """Lets a paused VM go on."""
    return await _act(nexus, request, principal, "resume", ref, wait, timeout_s)


@router.delete("/{ref}")
async def delete(
    ref: VmRef,
    request: Request,
    nexus: Nexus,
    principal: Writer,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> Ok:
    """Removes a VM in whatever state it is, with its disk and all that belongs to it."""
    return await _act(nexus, request, principal, "delete", ref, wait, timeout_s)


async def _act(
    nexus: Runtime,
    request: Request,
    principal: Principal,
    action: Action,
    ref: str,
    wait: WaitState | None,
    timeout_s: float,
    *,
    stop_timeout_s: float | None = None,
) -> Ok:
    caller = caller_of(request, principal, "vms:write")
    try:
        vm = await nexus.vms.act(action, ref, caller, stop_timeout_s=stop_timeout_s)
    except Done as done:
        (vm,) = await nexus.vms.done_before(done, caller.project)
    if wait is not None:
        seen: Vm | None = await wait_for(nexus.db, nexus.waiters, vm, wait, timeout_s)
        if not has_reached(seen, wait):
            raise explain(seen, wait)
    return Ok()
