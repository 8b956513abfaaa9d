"""Every call of the API as a value: what is sent, and how its answer is read.

The two clients only move these values; nothing about a route is written twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from nexus.api.common import Created, Item, Page
from nexus.api.hosts import Host
from nexus.api.images import Image, ImageBuild, ImageBuildCreate, ImageCreate, ImageKind
from nexus.api.vms import LogChunk, LogSource, Vm, VmCreate, VmEvent, VmState, WaitState

T = TypeVar("T")
DEFAULT_TIMEOUT_S = 30.0
WAIT_GRACE_S = 10.0
"""How much longer than a ``?wait=`` the client itself waits, so that the manager's answer wins."""

Query = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. ``read`` makes the answer out of the body's bytes."""

    method: str
    path: str
    read: Callable[[bytes], T]
    query: Query = field(default_factory=dict)
    body: BaseModel | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    probe: bool = False
    """Asks how things are at this moment: never retried."""

    @property
    def retryable(self) -> bool:
        """Whether sending it twice is the same as sending it once."""
        return self.method == "GET" and not self.probe

    def params(self) -> dict[str, str]:
        return {name: _text(value) for name, value in self.query.items() if value is not None}

    def content(self) -> bytes | None:
        if self.body is None:
            return None
        return self.body.model_dump_json(exclude_unset=True).encode()


def _text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _item(answer: type[Item[T]]) -> Callable[[bytes], T]:
    return lambda content: answer.model_validate_json(content).item


def _created(answer: type[Created[T]]) -> Callable[[bytes], T]:
    return lambda content: answer.model_validate_json(content).item


def _nothing(content: bytes) -> None:
    """Actions answer ``{"ok": true}``, which their status said already."""


def _one(path: str, ref: str, *rest: str) -> str:
    return "/".join((path, quote(ref, safe=""), *rest))


def _waiting(wait: WaitState | None, timeout_s: float | None) -> dict[str, str | float | None]:
    return {"wait": wait, "timeout_s": timeout_s if wait else None}


def _patience(wait: WaitState | None, timeout_s: float | None) -> float:
    return (timeout_s or 60.0) + WAIT_GRACE_S if wait else DEFAULT_TIMEOUT_S


def create_vm(spec: VmCreate, wait: WaitState | None, timeout_s: float | None) -> Call[Vm]:
    return Call(
        "POST",
        "/v1/vms",
        _created(Created[Vm]),
        _waiting(wait, timeout_s),
        spec,
        _patience(wait, timeout_s),
    )


def list_vms(
    state: VmState | None, name: str | None, limit: int | None, cursor: str | None
) -> Call[Page[Vm]]:
    query = {"state": state, "name": name, "limit": limit, "cursor": cursor}
    return Call("GET", "/v1/vms", Page[Vm].model_validate_json, query)


def get_vm(ref: str) -> Call[Vm]:
    return Call("GET", _one("/v1/vms", ref), _item(Item[Vm]))


def act_on_vm(ref: str, action: str, wait: WaitState | None, timeout_s: float | None) -> Call[None]:
    return Call(
        "POST",
        _one("/v1/vms", ref, action),
        _nothing,
        _waiting(wait, timeout_s),
        timeout_s=_patience(wait, timeout_s),
    )


def stop_vm(ref: str, force: bool, grace_s: float | None, wait: WaitState | None) -> Call[None]:
    """The manager's ``wait`` holds for the guest's grace and 50 s more."""
    query = {"force": force or None, "timeout_s": grace_s, "wait": wait}
    patience_s = (10.0 if grace_s is None else grace_s) + 50.0
    return Call(
        "POST",
        _one("/v1/vms", ref, "stop"),
        _nothing,
        query,
        timeout_s=_patience(wait, patience_s),
    )


def delete_vm(ref: str, wait: bool, timeout_s: float | None) -> Call[None]:
    until: WaitState | None = "deleted" if wait else None
    return Call(
        "DELETE",
        _one("/v1/vms", ref),
        _nothing,
        _waiting(until, timeout_s),
        timeout_s=_patience(until, timeout_s),
    )


def vm_logs(ref: str, source: LogSource, tail: int) -> Call[LogChunk]:
    query = {"source": source, "tail": tail}
    return Call("GET", _one("/v1/vms", ref, "logs"), _item(Item[LogChunk]), query)


def follow_vm_logs(ref: str, source: LogSource, tail: int) -> Call[None]:
    query = {"source": source, "tail": tail, "follow": True}
    return Call("GET", _one("/v1/vms", ref, "logs"), _nothing, query)


def vm_events(ref: str, limit: int | None, cursor: str | None) -> Call[Page[VmEvent]]:
    query = {"limit": limit, "cursor": cursor}
    return Call("GET", _one("/v1/vms", ref, "events"), Page[VmEvent].model_validate_json, query)


def register_image(spec: ImageCreate) -> Call[Image]:
    # Hashing and copying a large file takes its time.
    return Call("POST", "/v1/images", _created(Created[Image]), body=spec, timeout_s=600.0)


def list_images(
    kind: ImageKind | None, name: str | None, limit: int | None, cursor: str | None
) -> Call[Page[Image]]:
    query = {"kind": kind, "name": name, "limit": limit, "cursor": cursor}
    return Call("GET", "/v1/images", Page[Image].model_validate_json, query)


def get_image(ref: str) -> Call[Image]:
    return Call("GET", _one("/v1/images", ref), _item(Item[Image]))


def delete_image(ref: str) -> Call[None]:
    return Call("DELETE", _one("/v1/images", ref), _nothing)


def build_image(spec: ImageBuildCreate) -> Call[ImageBuild]:
    return Call("POST", "/v1/images/builds", _created(Created[ImageBuild]), body=spec)


def get_build(build_id: str) -> Call[ImageBuild]:
    return Call("GET", _one("/v1/images/builds", build_id), _item(Item[ImageBuild]))


def list_hosts(limit: int | None, cursor: str | None) -> Call[Page[Host]]:
    query = {"limit": limit, "cursor": cursor}
    return Call("GET", "/v1/hosts", Page[Host].model_validate_json, query)


def list_builds(limit: int | None, cursor: str | None) -> Call[Page[ImageBuild]]:
    query = {"limit": limit, "cursor": cursor}
    return Call("GET", "/v1/images/builds", Page[ImageBuild].model_validate_json, query)


def get_host(host_id: str) -> Call[Host]:
    return Call("GET", _one("/v1/hosts", host_id), _item(Item[Host]))


def console_path(ref: str) -> str:
    """The WebSocket of a VM's serial console."""
    return _one("/v1/vms", ref, "console")


def ready() -> Call[bool]:
    return Call("GET", "/readyz", lambda content: True, timeout_s=5.0, probe=True)
