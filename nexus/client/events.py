"""``client.events()``: following events, through every break of the connection."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import anyio

from nexus.api.events import EventGap
from nexus.api.vms import VmEvent
from nexus.client.calls import events as calls
from nexus.client.calls.events import Wanted
from nexus.client.errors import EventsLost, NexusApiError
from nexus.client.sse import Parser

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client

PAUSE_FIRST_S = 0.1
PAUSE_MOST_S = 5.0
_PASSING = frozenset({0, 500, 502, 503, 504})
"""Statuses of a manager that restarts or cannot be reached: what was followed is followed again."""


class Tail:
    """Where a reader is in the stream, and what to do when it breaks. Does no I/O.

    A manager that cannot be reached at first is an error; one that goes away later is waited for.
    """

    def __init__(self, after: int | None) -> None:
        self.after = after
        """The position to go on from; None before the manager has told one."""
        self._connected = False
        self._parser = Parser()
        self._pause_s = PAUSE_FIRST_S

    def take(self, chunk: bytes) -> Iterator[VmEvent]:
        """The events in a piece of the stream. Raises EventsLost."""
        self._connected = True
        self._pause_s = PAUSE_FIRST_S
        for message in self._parser.feed(chunk):
            if message.event == "gap":
                gap = EventGap.model_validate_json(message.data)
                self.after = gap.to
                raise EventsLost(gap)
            if message.id is not None:
                self.after = int(message.id)
            if message.event == "vm":
                yield VmEvent.model_validate_json(message.data)

    def broken(self, error: NexusApiError | None) -> float:
        """How long to rest before connecting again. Raises ``error`` when that would not help."""
        if error is not None and not (self._connected and error.status in _PASSING):
            raise error
        self._parser = Parser()
        pause_s = self._pause_s
        self._pause_s = min(PAUSE_MOST_S, pause_s * 2)
        return pause_s


def follow(client: "Client", wanted: Wanted, after: int | None) -> Iterator[VmEvent]:
    """Events as they happen, each once, for ever."""
    tail = Tail(after)
    while True:
        broken: NexusApiError | None = None
        try:
            for chunk in client.stream(calls.follow_events(wanted, tail.after)):
                yield from tail.take(chunk)
        except EventsLost:
            raise
        except NexusApiError as error:
            broken = error
        time.sleep(tail.broken(broken))


async def follow_async(
    client: "AsyncClient", wanted: Wanted, after: int | None
) -> AsyncIterator[VmEvent]:
    """Events as they happen, each once, for ever."""
    tail = Tail(after)
    while True:
        broken: NexusApiError | None = None
        try:
            async for chunk in client.stream(calls.follow_events(wanted, tail.after)):
                for event in tail.take(chunk):
                    yield event
        except EventsLost:
            raise
        except NexusApiError as error:
            broken = error
        await anyio.sleep(tail.broken(broken))
