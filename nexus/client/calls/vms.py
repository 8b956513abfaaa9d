"""The calls of ``/v1/vms``."""

from nexus.api.common import Created, Item, Page
from nexus.api.vms import LogChunk, LogSource, Vm, VmCreate, VmEvent, VmState, WaitState
from nexus.api.why import VmWhy
from nexus.client.calls.call import Call, created, item, nothing, one, patience, waiting


def create_vm(spec: VmCreate, wait: WaitState | None, timeout_s: float | None) -> Call[Vm]:
    return Call(
        "POST",
        "/v1/vms",
        created(Created[Vm]),
        waiting(wait, timeout_s),
        spec,
        patience(wait, timeout_s),
    )


def list_vms(
    state: VmState | None, name: str | None, limit: int | None, cursor: str | None
) -> Call[Page[Vm]]:
    query = {"state": state, "name": name, "limit": limit, "cursor": cursor}
    return Call("GET", "/v1/vms", Page[Vm].model_validate_json, query)


def get_vm(ref: str) -> Call[Vm]:
    return Call("GET", one("/v1/vms", ref), item(Item[Vm]))


def act_on_vm(ref: str, action: str, wait: WaitState | None, timeout_s: float | None) -> Call[None]:
    return Call(
        "POST",
        one("/v1/vms", ref, action),
        nothing,
        waiting(wait, timeout_s),
        timeout_s=patience(wait, timeout_s),
    )


def stop_vm(ref: str, force: bool, grace_s: float | None, wait: WaitState | None) -> Call[None]:
    """The manager's ``wait`` holds for the guest's grace and 50 s more."""
    query = {"force": force or None, "timeout_s": grace_s, "wait": wait}
    patience_s = (10.0 if grace_s is None else grace_s) + 50.0
    return Call(
        "POST",
        one("/v1/vms", ref, "stop"),
        nothing,
        query,
        timeout_s=patience(wait, patience_s),
    )


def delete_vm(ref: str, wait: bool, timeout_s: float | None) -> Call[None]:
    until: WaitState | None = "deleted" if wait else None
    return Call(
        "DELETE",
        one("/v1/vms", ref),
        nothing,
        waiting(until, timeout_s),
        timeout_s=patience(until, timeout_s),
    )


def vm_logs(ref: str, source: LogSource, tail: int) -> Call[LogChunk]:
    query = {"source": source, "tail": tail}
    return Call("GET", one("/v1/vms", ref, "logs"), item(Item[LogChunk]), query)


def follow_vm_logs(ref: str, source: LogSource, tail: int) -> Call[None]:
    query = {"source": source, "tail": tail, "follow": True}
    return Call("GET", one("/v1/vms", ref, "logs"), nothing, query)


def vm_events(ref: str, limit: int | None, cursor: str | None) -> Call[Page[VmEvent]]:
    query = {"limit": limit, "cursor": cursor}
    return Call("GET", one("/v1/vms", ref, "events"), Page[VmEvent].model_validate_json, query)


def vm_why(ref: str) -> Call[VmWhy]:
    return Call("GET", one("/v1/vms", ref, "why"), item(Item[VmWhy]))


def console_path(ref: str) -> str:
    """The WebSocket of a VM's serial console."""
    return one("/v1/vms", ref, "console")
