"""The error envelope, and the exception that becomes it."""

from collections.abc import Iterable
from typing import Literal, get_args

from nexus.api.common import Wire

ErrorCode = Literal[
    "bad_request",
    "validation_failed",
    "unauthenticated",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "not_acceptable",
    "conflict",
    "name_taken",
    "invalid_state",
    "idempotency_conflict",
    "idempotency_in_progress",
    "precondition_failed",
    "in_use",
    "gone",
    "payload_too_large",
    "unsupported_media_type",
    "image_not_ready",
    "path_refused",
    "no_capacity",
    "quota_exceeded",
    "address_pool_exhausted",
    "too_many_requests",
    "timed_out",
    "client_closed_request",
    "vmm_fault",
    "guest_agent_missing",
    "guest_fault",
    "host_unreachable",
    "internal",
]


class ErrorBody(Wire):
    """What every non-2xx answer looks like."""

    error: ErrorCode
    message: str
    fault_message: str | None = None
    """The VMM's own words, or the guest's, when it was one of them that refused."""
    status: int
    suggestion: str | None = None
    """What to do or type next."""
    request_id: str


class NexusError(Exception):
    """An error with a cure; one handler per server turns it into ``ErrorBody``.

    Subclasses fix ``code`` and ``status``; the message says what failed and the suggestion what
    to do about it.
    """

    code: ErrorCode = "internal"
    status: int = 500

    def __init__(
        self,
        message: str,
        *,
        suggestion: str | None = None,
        fault_message: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion
        self.fault_message = fault_message


class BadRequest(NexusError):
    code = "bad_request"
    status = 400


class ValidationFailed(NexusError):
    code = "validation_failed"
    status = 422


class Unauthenticated(NexusError):
    code = "unauthenticated"
    status = 401


class Forbidden(NexusError):
    code = "forbidden"
    status = 403


class PathRefused(NexusError):
    code = "path_refused"
    status = 403


class NotFound(NexusError):
    code = "not_found"
    status = 404


class MethodNotAllowed(NexusError):
    """There is such a thing, and it is not used this way; ``allow`` is how it is."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, message: str, *, allow: Iterable[str], suggestion: str | None = None):
        super().__init__(message, suggestion=suggestion)
        self.allow = ", ".join(allow)


class ClientGone(NexusError):
    """The client hung up before there was an answer; nobody reads this one."""

    code = "client_closed_request"
    status = 499


class Conflict(NexusError):
    code = "conflict"
    status = 409


class NameTaken(NexusError):
    code = "name_taken"
    status = 409


class InvalidState(NexusError):
    """The thing exists, but not in a state that allows this."""

    code = "invalid_state"
    status = 409


class InUse(NexusError):
    code = "in_use"
    status = 409


class ImageNotReady(NexusError):
    code = "image_not_ready"
    status = 409


class NoCapacity(NexusError):
    code = "no_capacity"
    status = 409


class QuotaExceeded(NexusError):
    """The project may not have so much; nothing was made or changed."""

    code = "quota_exceeded"
    status = 409


class AddressPoolExhausted(NexusError):
    code = "address_pool_exhausted"
    status = 409


class PayloadTooLarge(NexusError):
    code = "payload_too_large"
    status = 413


class TimedOut(NexusError):
    """A wait ended before what was waited for came true; nothing was undone."""

    code = "timed_out"
    status = 504


class HostUnreachable(NexusError):
    code = "host_unreachable"
    status = 502


class VmmFault(NexusError):
    code = "vmm_fault"
    status = 400


class GuestAgentMissing(NexusError):
    """Nothing in the guest answers Nexus: another image, or it is still booting."""

    code = "guest_agent_missing"
    status = 409


class GuestFault(NexusError):
    """The guest refused; ``fault_message`` begins with its errno's name: ``ENOENT: …``."""

    code = "guest_fault"
    status = 409


class ClientLeft(NexusError):
    """Whoever asked went away before there was an answer; nobody reads this one."""

    code = "client_closed_request"
    status = 499


_BY_STATUS: dict[int, ErrorCode] = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    409: "conflict",
    410: "gone",
    412: "precondition_failed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "validation_failed",
    429: "too_many_requests",
    502: "host_unreachable",
    504: "timed_out",
}


def code_for_status(status: int) -> ErrorCode:
    """The error code for a status that a library chose; 4xx never becomes ``internal``."""
    known = _BY_STATUS.get(status)
    if known is not None:
        return known
    return "bad_request" if 400 <= status < 500 else "internal"


ERROR_CODES: frozenset[str] = frozenset(get_args(ErrorCode))
