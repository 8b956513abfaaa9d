"""One call of the API as a value: what is sent, and how its answer is read."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from nexus.api.common import Created, Item
from nexus.api.devices import DeviceWait
from nexus.api.vms import WaitState

T = TypeVar("T")
DEFAULT_TIMEOUT_S = 30.0
WAIT_GRACE_S = 10.0
"""How much longer than a ``?wait=`` the client itself waits, so that the manager's answer wins."""

STALL_TIMEOUT_S = 120.0
"""How long the transfer of a file, either way, may stand still."""

Query = Mapping[str, str | int | float | bool | Sequence[str] | None]


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
    """Never retried: asks how things are at this moment, or may do harm the second time."""
    key: str | None = None
    """The Idempotency-Key; made up for a POST that has none."""
    if_match: str | None = None
    """The ETag that the thing must have."""
    silence_s: float | None = None
    """How long a stream may say nothing before its connection counts as dead; None: for ever."""

    @property
    def retryable(self) -> bool:
        """Whether sending it twice is the same as sending it once: a POST has its key."""
        return self.method in ("GET", "POST") and not self.probe

    def headers(self) -> dict[str, str]:
        """The call's own headers. Ask once for all attempts: the key is made here."""
        made: dict[str, str] = {}
        if self.body is not None:
            made["content-type"] = "application/json"
        if self.method == "POST":
            made["idempotency-key"] = self.key or str(uuid.uuid4())
        if self.if_match is not None:
            made["if-match"] = self.if_match
        return made

    def params(self) -> tuple[tuple[str, str], ...]:
        given: list[tuple[str, str]] = []
        for name, value in self.query.items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                given += [(name, each) for each in value]
            elif value is not None:
                given.append((name, _text(value)))
        return tuple(given)

    def content(self) -> bytes | None:
        if self.body is None:
            return None
        return self.body.model_dump_json(exclude_unset=True).encode()


def _text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def item(answer: type[Item[T]]) -> Callable[[bytes], T]:
    """Reads ``{"item": ...}``."""
    return lambda content: answer.model_validate_json(content).item


def created(answer: type[Created[T]]) -> Callable[[bytes], T]:
    """Reads ``{"id": ..., "item": ...}``."""
    return lambda content: answer.model_validate_json(content).item


def nothing(content: bytes) -> None:
    """Actions answer ``{"ok": true}``, which their status said already."""


def one(path: str, ref: str, *rest: str) -> str:
    """The path of one thing, or of what lies below it; ``ref`` may hold any character."""
    return "/".join((path, quote(ref, safe=""), *rest))


def waiting(
    wait: WaitState | DeviceWait | None, timeout_s: float | None
) -> dict[str, str | float | None]:
    """The query that makes the manager hold its answer."""
    return {"wait": wait, "timeout_s": timeout_s if wait else None}


def patience(wait: WaitState | DeviceWait | None, timeout_s: float | None) -> float:
    """How long the client waits for an answer that the manager may hold."""
    return (timeout_s or 60.0) + WAIT_GRACE_S if wait else DEFAULT_TIMEOUT_S
