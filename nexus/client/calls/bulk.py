"""The calls about many VMs at once, and about what follows a VM's end."""

from nexus.api.bulk import BulkAnswer, BulkDone, BulkRefused, VmActions
from nexus.api.common import CreatedMany, Item
from nexus.api.vms import Vm, VmCreate, VmUpdate, WaitState
from nexus.client.calls.call import Call, item, nothing, one, patience, waiting

STOP_GRACE_S = 10.0
STOP_WAIT_S = 50.0
"""How much longer than the guest's grace a wait for a stop holds."""

Answers = list[BulkDone | BulkRefused]


def create_vms(
    spec: VmCreate, wait: WaitState | None, timeout_s: float | None, key: str | None
) -> Call[list[Vm]]:
    return Call(
        "POST",
        "/v1/vms",
        lambda content: CreatedMany[Vm].model_validate_json(content).items,
        waiting(wait, timeout_s),
        spec,
        patience(wait, timeout_s),
        key=key,
    )


def act_on_vms(
    request: VmActions, wait: WaitState | None, timeout_s: float | None
) -> Call[Answers]:
    if wait is not None and timeout_s is None and request.action in ("stop", "reboot"):
        given = request.stop_timeout_s
        timeout_s = min(600.0, (STOP_GRACE_S if given is None else given) + STOP_WAIT_S)
    return Call(
        "POST",
        "/v1/vms/actions",
        lambda content: BulkAnswer.model_validate_json(content).items,
        waiting(wait, timeout_s),
        request,
        patience(wait, timeout_s),
    )


def reboot_vm(ref: str, force: bool, grace_s: float | None, wait: WaitState | None) -> Call[None]:
    query = {"force": force or None, "timeout_s": grace_s, "wait": wait}
    held_s = (STOP_GRACE_S if grace_s is None else grace_s) + STOP_WAIT_S
    return Call(
        "POST", one("/v1/vms", ref, "reboot"), nothing, query, timeout_s=patience(wait, held_s)
    )


def change_terms(ref: str, change: VmUpdate) -> Call[Vm]:
    return Call("PATCH", one("/v1/vms", ref), item(Item[Vm]), body=change)
