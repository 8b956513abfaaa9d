"""What the SDK raises. Every error carries the manager's own words and its suggestion."""

from collections.abc import Callable
from typing import TypeVar

import httpx

from nexus.api.errors import ErrorBody
from nexus.api.events import EventGap
from nexus.api.vms import Vm

T = TypeVar("T")


class NexusApiError(Exception):
    """The manager refused or failed. ``status`` is 0 when there was no answer at all."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        suggestion: str | None = None,
        fault_message: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.suggestion = suggestion
        self.fault_message = fault_message
        self.request_id = request_id


class NotFoundError(NexusApiError):
    """404: there is no such thing."""


class DeniedError(NexusApiError):
    """401 or 403: no valid token, or one that may not do this."""


class ConflictError(NexusApiError):
    """409: the thing is not in a state that allows this, or the name is taken."""


class ChangedError(NexusApiError):
    """412: the thing is not as it was when its ETag was read; nothing was changed."""


class WaitTimedOut(NexusApiError):
    """504, or no answer in time: what was waited for did not come true; nothing was undone."""


class NotReachable(NexusApiError):
    """No connection, or it broke before the answer was complete."""


class EventsLost(NexusApiError):
    """Events between two positions can no longer be read; go on with ``after=error.gap.to``."""

    def __init__(self, gap: EventGap) -> None:
        super().__init__(
            410,
            "gone",
            f"events behind {gap.after} and up to {gap.to} are no longer kept"
            if gap.reason == "pruned"
            else f"the manager's events have not come to position {gap.after}: it has another past",
            suggestion="read how things are now, then follow from there",
        )
        self.gap = gap


def failed(vm: Vm) -> ConflictError:
    """The error of a VM that does not run and will not."""
    if vm.error is None:
        return ConflictError(
            409, "invalid_state", f"{vm.name} is {vm.state}", suggestion=f"nexus events {vm.name}"
        )
    return ConflictError(
        409,
        "invalid_state",
        f"{vm.name} failed in stage {vm.error.stage}: {vm.error.message}",
        suggestion=vm.error.suggestion,
        fault_message=vm.error.fault_message,
    )


_BY_STATUS: dict[int, type[NexusApiError]] = {
    401: DeniedError,
    403: DeniedError,
    404: NotFoundError,
    409: ConflictError,
    412: ChangedError,
    504: WaitTimedOut,
}


_STATUS_OF = {"forbidden": 403, "not_found": 404, "timed_out": 504, "host_unreachable": 502}


def error_of(response: httpx.Response) -> NexusApiError:
    """The exception for a non-2xx answer whose body has been read."""
    kind = _BY_STATUS.get(response.status_code, NexusApiError)
    try:
        body = ErrorBody.model_validate_json(response.content)
    except ValueError:
        return kind(
            response.status_code,
            "internal",
            f"HTTP {response.status_code} without Nexus' error envelope",
            suggestion="check that the address is that of a Nexus manager",
            request_id=response.headers.get("x-request-id"),
        )
    return error_from(body)


def error_from(body: ErrorBody) -> NexusApiError:
    """The exception for an error envelope."""
    return _BY_STATUS.get(body.status, NexusApiError)(
        body.status,
        body.error,
        body.message,
        suggestion=body.suggestion,
        fault_message=body.fault_message,
        request_id=body.request_id,
    )


def error_for(
    code: str, message: str, *, suggestion: str | None = None, fault_message: str | None = None
) -> NexusApiError:
    """The exception for an error that is told within an answer."""
    status = _STATUS_OF.get(code, 409)
    kind = _BY_STATUS.get(status, NexusApiError)
    return kind(status, code, message, suggestion=suggestion, fault_message=fault_message)


def answer_of(read: Callable[[bytes], T], response: httpx.Response) -> T:
    """The typed answer of a 2xx response. Raises NexusApiError when it is something else."""
    try:
        return read(response.content)
    except ValueError as error:
        raise NexusApiError(
            response.status_code,
            "internal",
            f"the answer of {response.url} is not what this version of Nexus expects",
            suggestion="check the address, and that the manager has the version of this client",
            request_id=response.headers.get("x-request-id"),
        ) from error


def not_reachable(url: str, cause: Exception) -> NotReachable | WaitTimedOut:
    if isinstance(cause, httpx.TimeoutException) and not isinstance(cause, httpx.ConnectTimeout):
        return WaitTimedOut(
            0,
            "timed_out",
            f"{url} did not answer in time",
            suggestion="ask again, or look at the manager's log",
        )
    return NotReachable(
        0,
        "host_unreachable",
        f"no answer from {url}: {str(cause) or type(cause).__name__}",
        suggestion="is Nexus running? start it with: nexus up",
    )
