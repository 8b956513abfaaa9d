"""Relaying requests to a VM's own API: only what is harmless to the host.

Endpoints that take paths of the host (drives' files, snapshots, logs, sockets) are refused: a VMM
outside of a jail would open any file as root.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from nexus.api.errors import (
    BadRequest,
    Forbidden,
    HostUnreachable,
    MethodNotAllowed,
    NotFound,
    PathRefused,
    PayloadTooLarge,
    TimedOut,
    VmmFault,
)
from nexus.api.machines import VMM_BODY_BYTES
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmImpostor, VmmTimeout, VmmUnreachable

TIMEOUT_S = 10.0
_SEE = "see Firecracker's API, 1.12"
_POWERS: Mapping[str, Literal["running", "paused"]] = {"Paused": "paused", "Resumed": "running"}

_ID = r"[A-Za-z0-9_]{1,64}"

_ENDPOINTS: tuple[tuple[str, Mapping[str, bool]], ...] = (
    # path, and for each method that Firecracker has there: whether it is relayed
    (r"/", {"GET": True}),
    (r"/version", {"GET": True}),
    (r"/vm", {"PATCH": True}),
    (r"/vm/config", {"GET": True}),
    (r"/actions", {"PUT": True}),
    (r"/machine-config", {"GET": True, "PUT": True, "PATCH": True}),
    (r"/cpu-config", {"PUT": True}),
    (r"/balloon", {"GET": True, "PUT": True, "PATCH": True}),
    (r"/balloon/statistics", {"GET": True, "PATCH": True}),
    (r"/entropy", {"PUT": True}),
    (r"/mmds", {"GET": True, "PUT": True, "PATCH": True}),
    (r"/mmds/config", {"PUT": True}),
    (rf"/network-interfaces/{_ID}", {"PUT": False, "PATCH": True}),
    (rf"/drives/{_ID}", {"PUT": False, "PATCH": True}),
    (r"/boot-source", {"PUT": False}),
    (r"/vsock", {"PUT": False}),
    (r"/logger", {"PUT": False}),
    (r"/metrics", {"PUT": False}),
    (r"/serial", {"PUT": False}),
    (r"/snapshot/create", {"PUT": False}),
    (r"/snapshot/load", {"PUT": False}),
)


def check_address(raw_path: bytes, query: Iterable[tuple[str, str]], own_socket: Path) -> None:
    """Raises NotFound for a path that is not written plainly, PathRefused for a ``?sock=`` that
    is not exactly the VM's own socket or that a VMM has replaced, BadRequest for other queries."""
    if b"%" in raw_path:
        raise NotFound("the VMM has no endpoint with an escape in it", suggestion=_SEE)
    for name, value in query:
        if name.strip().lower() != "sock":
            raise BadRequest(f"the proxy takes no query {name[:64]!r}", suggestion="leave it away")
        if name != "sock" or value != str(own_socket):
            raise PathRefused(
                "the socket is the VM's own, and no other", suggestion="leave ?sock= away"
            )
    if own_socket.is_symlink() or own_socket.parent.is_symlink():
        raise PathRefused(
            "the VM's socket is a link, which neither the agent nor a VMM makes",
            suggestion="stop the VM, and look at what its VMM did",
        )


def check_method(method: str, path: str) -> None:
    """Raises NotFound, MethodNotAllowed or Forbidden unless the endpoint is relayed."""
    methods = next((m for pattern, m in _ENDPOINTS if re.fullmatch(pattern, path)), None)
    if methods is None:
        raise NotFound(f"the VMM has no endpoint {path[:200]!r}", suggestion=_SEE)
    if method not in methods:
        allow = [name for name, relayed in methods.items() if relayed]
        raise MethodNotAllowed(
            f"{path} does not take {method[:32]}",
            allow=allow,
            suggestion=f"it takes {', '.join(methods)}",
        )
    if not methods[method]:
        raise Forbidden(
            f"{method} {path} is not relayed: it names files or devices of the host",
            suggestion="use the VM's own routes for disks, networks and snapshots",
        )


def checked_body(method: str, path: str, body: bytes) -> bytes:
    """The body to relay. Raises PayloadTooLarge, BadRequest or PathRefused."""
    if len(body) > VMM_BODY_BYTES:
        raise PayloadTooLarge(f"the VMM takes at most {VMM_BODY_BYTES} bytes")
    if method == "GET":
        if body:
            raise BadRequest(f"GET {path} takes no body", suggestion="send none")
        return body
    return _checked_drive_change(body) if path.startswith("/drives/") else body


def check(method: str, path: str, body: bytes) -> None:
    """Raises what the three checks of method, path and body raise."""
    check_method(method, path)
    checked_body(method, path, body)


def _checked_drive_change(body: bytes) -> bytes:
    """Written anew, so that the VMM reads exactly what was judged here."""
    try:
        change = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error
    if not isinstance(change, dict) or "path_on_host" in change:
        raise PathRefused(
            "a drive's file cannot be changed past the agent",
            suggestion="send the rate limiter alone",
        )
    return json.dumps(change).encode()


def power_in(method: str, path: str, body: bytes) -> Literal["running", "paused"] | None:
    """The power that a request asks for, if it is one that pauses or resumes."""
    if (method, path) != ("PATCH", "/vm"):
        return None
    try:
        wish = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return _POWERS.get(str(wish.get("state"))) if isinstance(wish, dict) else None


async def relay(
    client: VmmClient, method: str, path: str, body: bytes, *, timeout_s: float = TIMEOUT_S
) -> tuple[int, bytes]:
    """The VMM's answer. Raises VmmFault with its status and words when it refuses, TimedOut when
    it does not answer in time, HostUnreachable when nobody listens."""
    try:
        status, answer = await client.request(method, path, body or None, timeout_s=timeout_s)
    except VmmTimeout as error:
        raise TimedOut(
            f"the VMM did not answer within {timeout_s:.0f} s",
            suggestion="read the VMM's log; it may hang",
        ) from error
    except VmmImpostor as error:
        raise PathRefused(
            "another process than the VM's VMM answers on its socket",
            suggestion="stop the VM, and look at what its VMM did",
        ) from error
    except VmmUnreachable as error:
        raise HostUnreachable(
            "the VM has no running VMM", suggestion="start the VM first"
        ) from error
    if status >= 300:
        fault = VmmFault(f"the VMM refused {method} {path}", fault_message=_fault(answer))
        fault.status = status
        raise fault
    return status, answer


def _fault(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["fault_message"])
    except (ValueError, KeyError, TypeError):
        return answer[:500].decode("utf-8", "replace")
