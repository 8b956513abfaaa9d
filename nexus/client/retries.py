"""What is retried: reads, when the connection or the manager fails for a moment."""

from collections.abc import Iterator
from typing import TypeVar

from nexus.client.calls import Call

T = TypeVar("T")
RETRY_STATUSES = frozenset({502, 503, 504})
PAUSES_S = (0.1, 0.4)


def backoffs(call: Call[T]) -> Iterator[float | None]:
    """One value for each attempt: the pause after it, or None when it is the last."""
    if call.retryable:
        yield from PAUSES_S
    yield None
