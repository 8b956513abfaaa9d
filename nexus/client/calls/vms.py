"""The calls of ``/v1/vms``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import JsonValue, RootModel

from nexus.api.common import Created, Item, Page
from nexus.api.vms import LogChunk, LogSource, Vm, VmCreate, VmEvent, VmState, VmUpdate, WaitState
from nexus.api.why import VmWhy
from nexus.client.calls.call import Call, created, item, nothing, one, patience, waiting


def create_vm(
    spec: VmCreate, wait: WaitState | None, timeout_s: float | None, key: str | None
) -> Call[Vm]:
    return Call(
        "POST",
        "/v1/vms",
        created(Created[Vm]),
        waiting(wait, timeout_s),
        spec,
        patience(wait, timeout_s),
        key=key,
    )


@dataclass(frozen=True, slots=True)
class VmQuery:
    """What a list of VMs is narrowed to."""

    state: VmState | None = None
    name: str | None = None
    host: str | None = None
    tags: Sequence[str] = ()
    project: str | None = None
    limit: int | None = None
    template: str | None = None
    pooled: bool = False


def list_vms(narrowed: VmQuery, cursor: str | None) -> Call[Page[Vm]]:
    query = {
        "state": narrowed.state,
        "name": narrowed.name,
        "host": narrowed.host,
        "tag": narrowed.tags,
        "template": narrowed.template,
        "pooled": narrowed.pooled or None,
        "project": narrowed.project,
        "limit": narrowed.limit,
        "cursor": cursor,
    }
    return Call("GET", "/v1/vms", Page[Vm].model_validate_json, query)


def get_vm(ref: str) -> Call[Vm]:
    return Call("GET", one("/v1/vms", ref), item(Item[Vm]))


def update_vm(ref: str, changes: VmUpdate, if_match: str | None) -> Call[Vm]:
    path = one("/v1/vms", ref)
    return Call("PATCH", path, item(Item[Vm]), body=changes, if_match=if_match)


def act_on_vm(
    ref: str,
    action: str,
    wait: WaitState | None,
    timeout_s: float | None,
    if_match: str | None,
) -> Call[None]:
    return Call(
        "POST",
        one("/v1/vms", ref, action),
        nothing,
        waiting(wait, timeout_s),
        timeout_s=patience(wait, timeout_s),
        if_match=if_match,
    )


def stop_vm(
    ref: str,
    force: bool,
    grace_s: float | None,
    wait: WaitState | None,
    if_match: str | None,
) -> Call[None]:
    """The manager's ``wait`` holds for the guest's grace and 50 s more."""
    query = {"force": force or None, "timeout_s": grace_s, "wait": wait}
    patience_s = (10.0 if grace_s is None else grace_s) + 50.0
    return Call(
        "POST",
        one("/v1/vms", ref, "stop"),
        nothing,
        query,
        timeout_s=patience(wait, patience_s),
        if_match=if_match,
    )


def delete_vm(ref: str, wait: bool, timeout_s: float | None, if_match: str | None) -> Call[None]:
    until: WaitState | None = "deleted" if wait else None
    return Call(
        "DELETE",
        one("/v1/vms", ref),
        nothing,
        waiting(until, timeout_s),
        timeout_s=patience(until, timeout_s),
        if_match=if_match,
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


class _Json(RootModel[JsonValue]):
    """A body that is the VMM's business, not ours."""


def firecracker(ref: str, method: str, path: str, body: JsonValue) -> Call[JsonValue]:
    return Call(
        method.upper(),
        one("/v1/vms", ref, "firecracker", quote(path.lstrip("/"), safe="/")),
        lambda content: json.loads(content) if content else None,
        body=None if body is None else _Json(body),
    )


def console_path(ref: str) -> str:
    """The WebSocket of a VM's serial console."""
    return one("/v1/vms", ref, "console")
