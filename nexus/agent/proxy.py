"""Relaying requests to a VM's own API: only what is harmless to the host.

Endpoints that take paths of the host (drives' files, snapshots, logs, sockets) are refused: a VMM
outside of a jail would open any file as root.
"""

import json
import re
from collections.abc import Mapping

from nexus.api.errors import (
    BadRequest,
    Forbidden,
    HostUnreachable,
    NexusError,
    NotFound,
    PathRefused,
    PayloadTooLarge,
    TimedOut,
    VmmFault,
)
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmTimeout, VmmUnreachable

MAX_BODY_BYTES = 51_200
"""Firecracker's own default bound."""
TIMEOUT_S = 10.0

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


class MethodNotAllowed(NexusError):
    code = "method_not_allowed"
    status = 405


def check(method: str, path: str, body: bytes) -> None:
    """Raises NotFound, MethodNotAllowed, Forbidden, PathRefused or PayloadTooLarge unless the
    request may be relayed."""
    methods = next((m for pattern, m in _ENDPOINTS if re.fullmatch(pattern, path)), None)
    if methods is None:
        raise NotFound(
            f"the VMM has no endpoint {path[:200]!r}", suggestion="see Firecracker's API, 1.12"
        )
    if method not in methods:
        raise MethodNotAllowed(
            f"{path} does not take {method}", suggestion=f"it takes {', '.join(methods)}"
        )
    if not methods[method]:
        raise Forbidden(
            f"{method} {path} is not relayed: it names files or devices of the host",
            suggestion="use the VM's own routes for disks, networks and snapshots",
        )
    if len(body) > MAX_BODY_BYTES:
        raise PayloadTooLarge(f"the VMM takes at most {MAX_BODY_BYTES} bytes")
    if path.startswith("/drives/"):
        _check_drive_change(body)


def _check_drive_change(body: bytes) -> None:
    try:
        change = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error
    if not isinstance(change, dict) or "path_on_host" in change:
        raise PathRefused(
            "a drive's file cannot be changed past the agent",
            suggestion="send the rate limiter alone",
        )


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
