"""What is retried: reads, when the connection or the manager fails for a moment."""

from collections.abc import Iterator
from typing import TypeVar

import httpx

from nexus.client.calls.call import Call

T = TypeVar("T")
RETRY_STATUSES = frozenset({502, 503, 504})
RETRY_ERRORS = (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)
"""A connection that was refused or broke; a time-out is not retried, it would only wait again."""
PAUSES_S = (0.1, 0.4)


def backoffs(call: Call[T]) -> Iterator[float | None]:
    """One value for each attempt: the pause after it, or None when it is the last."""
    if call.retryable:
        yield from PAUSES_S
    yield None
