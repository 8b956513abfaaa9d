"""``POST /v1/vms/actions``: one action on many VMs."""

from fastapi import APIRouter, Request

from nexus.api.bulk import BulkAnswer, VmActions
from nexus.manager.routes.parts import WAIT_S, Wait, Wait_s, Writer
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.services.vm_bulk import answer

router = APIRouter(prefix="/v1/vms", tags=["vms"])


@router.post("/actions")
async def act(
    request: Request,
    body: VmActions,
    nexus: Nexus,
    principal: Writer,
    wait: Wait = None,
    timeout_s: Wait_s = WAIT_S,
) -> BulkAnswer:
    """Starts, stops, pauses, resumes, reboots or deletes VMs, and answers for each of them.

    With ``wait`` the answer comes when each is so or will not get there, or after ``timeout_s``.
    """
    verdicts = await nexus.bulk.act(body, caller_of(request, principal, "vms:write"))
    if wait is not None:
        verdicts = await nexus.bulk.wait(verdicts, wait, timeout_s)
    return answer(verdicts)
