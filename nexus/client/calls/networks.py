"""The calls of ``/v1/networks`` and of a VM's forwards."""

from nexus.api.common import Created, Item, Page
from nexus.api.doctor import NetworkDoctor
from nexus.api.networks import (
    Network,
    NetworkChange,
    NetworkCreate,
    NetworkMember,
    PortForward,
    PortForwardCreate,
)
from nexus.client.calls.call import (
    DEFAULT_TIMEOUT_S,
    WAIT_GRACE_S,
    Call,
    created,
    item,
    nothing,
    one,
)


def _wait(wait: bool, timeout_s: float | None) -> dict[str, str | float | None]:
    return {"wait": "ready" if wait else None, "timeout_s": timeout_s if wait else None}


def _patience(wait: bool, timeout_s: float | None) -> float:
    return (timeout_s or 60.0) + WAIT_GRACE_S if wait else DEFAULT_TIMEOUT_S


def create_network(spec: NetworkCreate, wait: bool, timeout_s: float | None) -> Call[Network]:
    return Call(
        "POST",
        "/v1/networks",
        created(Created[Network]),
        _wait(wait, timeout_s),
        spec,
        _patience(wait, timeout_s),
    )


def change_network(
    ref: str, change: NetworkChange, wait: bool, timeout_s: float | None
) -> Call[Network]:
    return Call(
        "PATCH",
        one("/v1/networks", ref),
        item(Item[Network]),
        _wait(wait, timeout_s),
        change,
        _patience(wait, timeout_s),
    )


def list_networks(limit: int | None, cursor: str | None) -> Call[Page[Network]]:
    query = {"limit": limit, "cursor": cursor}
    return Call("GET", "/v1/networks", Page[Network].model_validate_json, query)


def get_network(ref: str) -> Call[Network]:
    return Call("GET", one("/v1/networks", ref), item(Item[Network]))


def delete_network(ref: str) -> Call[None]:
    return Call("DELETE", one("/v1/networks", ref), nothing)


def network_members(ref: str) -> Call[Page[NetworkMember]]:
    path = one("/v1/networks", ref, "vms")
    return Call("GET", path, Page[NetworkMember].model_validate_json)


def network_doctor(vm: str) -> Call[NetworkDoctor]:
    return Call("GET", one("/v1/vms", vm, "network-doctor"), item(Item[NetworkDoctor]))


def create_forward(vm: str, spec: PortForwardCreate) -> Call[PortForward]:
    path = one("/v1/vms", vm, "forwards")
    return Call("POST", path, created(Created[PortForward]), body=spec)


def list_forwards(vm: str) -> Call[Page[PortForward]]:
    path = one("/v1/vms", vm, "forwards")
    return Call("GET", path, Page[PortForward].model_validate_json)


def delete_forward(vm: str, forward_id: str) -> Call[None]:
    return Call("DELETE", one("/v1/vms", vm, "forwards", forward_id), nothing)
