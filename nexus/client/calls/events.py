"""The calls of ``/v1/events``."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from nexus.api.common import Page
from nexus.api.vms import VmEvent, VmState
from nexus.client.calls.call import Call, Query, nothing

SILENCE_S = 45.0
"""The manager says something every 15 s; after so long without a word the connection is dead."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events."""

    vm: str | None = None
    states: Sequence[VmState] = ()
    reasons: Sequence[str] = ()
    since: datetime | None = None

    def query(self) -> Query:
        return {
            "vm": self.vm,
            "state": self.states or None,
            "reason": self.reasons or None,
            "since": self.since.isoformat() if self.since else None,
        }


def list_events(
    wanted: Wanted, after: int | None, limit: int | None, cursor: str | None
) -> Call[Page[VmEvent]]:
    position: Query = {"cursor": cursor} if cursor else {"after": after}
    query = {**wanted.query(), **position, "limit": limit}
    return Call("GET", "/v1/events", Page[VmEvent].model_validate_json, query)


def follow_events(wanted: Wanted, after: int | None) -> Call[None]:
    query = {**wanted.query(), "after": after, "follow": True}
    return Call("GET", "/v1/events", nothing, query, silence_s=SILENCE_S)
