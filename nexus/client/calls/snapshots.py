"""The calls of ``/v1/snapshots``, and of a VM's snapshots."""

from dataclasses import dataclass

from nexus.api.common import Created, CreatedMany, Item, Page
from nexus.api.vm_snapshots import (
    Snapshot,
    SnapshotClone,
    SnapshotCreate,
    SnapshotSchedule,
    SnapshotScheduleSet,
    SnapshotState,
    SnapshotUpdate,
    VmRestore,
)
from nexus.api.vms import Vm, WaitState
from nexus.client.calls.call import (
    DEFAULT_TIMEOUT_S,
    WAIT_GRACE_S,
    Call,
    created,
    item,
    nothing,
    one,
    patience,
    waiting,
)

PATH = "/v1/snapshots"


def _waiting(word: str, wait: bool, timeout_s: float | None) -> dict[str, str | float | None]:
    return {"wait": word if wait else None, "timeout_s": timeout_s if wait else None}


def _patience(wait: bool, timeout_s: float | None) -> float:
    return (timeout_s or 60.0) + WAIT_GRACE_S if wait else DEFAULT_TIMEOUT_S


def create_snapshot(
    vm: str, request: SnapshotCreate, wait: bool, timeout_s: float | None, key: str | None
) -> Call[Snapshot]:
    return Call(
        "POST",
        one("/v1/vms", vm, "snapshots"),
        created(Created[Snapshot]),
        _waiting("ready", wait, timeout_s),
        request,
        _patience(wait, timeout_s),
        key=key,
    )


@dataclass(frozen=True, slots=True)
class SnapshotQuery:
    """What a list of snapshots is narrowed to."""

    vm: str | None = None
    name: str | None = None
    state: SnapshotState | None = None
    limit: int | None = None


def list_snapshots(narrowed: SnapshotQuery, cursor: str | None) -> Call[Page[Snapshot]]:
    query = {
        "vm": narrowed.vm,
        "name": narrowed.name,
        "state": narrowed.state,
        "limit": narrowed.limit,
        "cursor": cursor,
    }
    return Call("GET", PATH, Page[Snapshot].model_validate_json, query)


def get_snapshot(ref: str) -> Call[Snapshot]:
    return Call("GET", one(PATH, ref), item(Item[Snapshot]))


def rename_snapshot(ref: str, name: str, if_match: str | None) -> Call[Snapshot]:
    body = SnapshotUpdate(name=name)
    return Call("PATCH", one(PATH, ref), item(Item[Snapshot]), body=body, if_match=if_match)


def delete_snapshot(
    ref: str, merge: bool, wait: bool, timeout_s: float | None, if_match: str | None
) -> Call[None]:
    return Call(
        "DELETE",
        one(PATH, ref),
        nothing,
        {"merge": merge or None, **_waiting("deleted", wait, timeout_s)},
        timeout_s=_patience(wait, timeout_s),
        if_match=if_match,
    )


def instantiate(
    ref: str,
    request: SnapshotClone,
    wait: WaitState | None,
    timeout_s: float | None,
    key: str | None,
) -> Call[list[Vm]]:
    def read(content: bytes) -> list[Vm]:
        if request.count is None:
            return [Created[Vm].model_validate_json(content).item]
        return CreatedMany[Vm].model_validate_json(content).items

    return Call(
        "POST",
        one(PATH, ref, "instantiate"),
        read,
        waiting(wait, timeout_s),
        request,
        patience(wait, timeout_s),
        key=key,
    )


def restore_vm(
    vm: str,
    request: VmRestore,
    wait: WaitState | None,
    timeout_s: float | None,
    if_match: str | None,
) -> Call[Vm]:
    return Call(
        "POST",
        one("/v1/vms", vm, "restore"),
        item(Item[Vm]),
        waiting(wait, timeout_s),
        request,
        patience(wait, timeout_s),
        if_match=if_match,
    )


def _schedule(vm: str) -> str:
    return one("/v1/vms", vm, "snapshot-schedule")


def set_schedule(vm: str, wanted: SnapshotScheduleSet) -> Call[SnapshotSchedule]:
    return Call("PUT", _schedule(vm), item(Item[SnapshotSchedule]), body=wanted)


def get_schedule(vm: str) -> Call[SnapshotSchedule]:
    return Call("GET", _schedule(vm), item(Item[SnapshotSchedule]))


def delete_schedule(vm: str) -> Call[None]:
    return Call("DELETE", _schedule(vm), nothing)


def export_snapshot(ref: str) -> Call[None]:
    return Call("GET", one(PATH, ref, "export"), nothing)


def import_snapshot(name: str | None, host: str | None) -> Call[Snapshot]:
    query = {"name": name, "host": host}
    return Call("POST", f"{PATH}/import", created(Created[Snapshot]), query)
