"""What is retried when the connection or the manager fails for a moment: what may be sent twice."""

from collections.abc import Iterator
from typing import TypeVar

import httpx

from nexus.client.calls.call import Call
from nexus.client.errors import NexusApiError

T = TypeVar("T")
RETRY_STATUSES = frozenset({502, 503, 504})
RETRY_ERRORS = (
    httpx.ConnectError,
    httpx.ReadError,
    httpx.WriteError,
    httpx.RemoteProtocolError,
)
"""A connection that was refused or broke; a time-out is not retried, it would only wait again."""
PAUSES_S = (0.1, 0.4)


def backoffs(call: Call[T]) -> Iterator[float | None]:
    """One value for each attempt: the pause after it, or None when it is the last."""
    if call.retryable:
        yield from PAUSES_S
    yield None


def may_pass(call: Call[T], refusal: NexusApiError) -> bool:
    """Whether the same call may fare better in a moment.

    A POST whose wait ended would only wait again; one whose first attempt is still going on gets
    its answer when that has come to its end.
    """
    if call.method == "POST" and refusal.status == 504:
        return False
    return refusal.status in RETRY_STATUSES or refusal.code == "idempotency_in_progress"
