"""The calls of ``/v1/volumes``."""

from pydantic import BaseModel

from nexus.api.common import Created, Item, Page
from nexus.api.devices import DeviceWait
from nexus.api.volumes import (
    Volume,
    VolumeAttach,
    VolumeChange,
    VolumeCreate,
    VolumeDetach,
    VolumeSnapshot,
)
from nexus.client.calls.call import Call, created, item, nothing, one, patience, waiting

COPY_TIMEOUT_S = 660.0
"""A volume is copied before the answer; the manager itself gives its host 600 s."""


def create_volume(spec: VolumeCreate) -> Call[Volume]:
    return Call("POST", "/v1/volumes", created(Created[Volume]), body=spec)


def list_volumes(limit: int | None, cursor: str | None) -> Call[Page[Volume]]:
    query = {"limit": limit, "cursor": cursor}
    return Call("GET", "/v1/volumes", Page[Volume].model_validate_json, query)


def get_volume(ref: str) -> Call[Volume]:
    return Call("GET", one("/v1/volumes", ref), item(Item[Volume]))


def update_volume(
    ref: str, change: VolumeChange, wait: bool, timeout_s: float | None
) -> Call[Volume]:
    return _change("PATCH", one("/v1/volumes", ref), change, wait, timeout_s)


def attach_volume(
    ref: str, wanted: VolumeAttach, wait: bool, timeout_s: float | None
) -> Call[Volume]:
    return _change("POST", one("/v1/volumes", ref, "attach"), wanted, wait, timeout_s)


def detach_volume(
    ref: str, wanted: VolumeDetach, wait: bool, timeout_s: float | None
) -> Call[Volume]:
    return _change("POST", one("/v1/volumes", ref, "detach"), wanted, wait, timeout_s)


def snapshot_volume(ref: str, name: str) -> Call[Volume]:
    return Call(
        "POST",
        one("/v1/volumes", ref, "snapshot"),
        created(Created[Volume]),
        body=VolumeSnapshot(name=name),
        timeout_s=COPY_TIMEOUT_S,
    )


def delete_volume(ref: str) -> Call[None]:
    return Call("DELETE", one("/v1/volumes", ref), nothing)


def _change(
    method: str, path: str, body: BaseModel, wait: bool, timeout_s: float | None
) -> Call[Volume]:
    until: DeviceWait | None = "applied" if wait else None
    return Call(
        method,
        path,
        item(Item[Volume]),
        waiting(until, timeout_s),
        body,
        patience(until, timeout_s),
    )
