"""The live end of the events: one look at the database for all streams of this process.

A stream keeps nothing in memory but its position: it reads pages from the database, and a page only
when its reader has taken the one before. See docs/events.md.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import anyio
import structlog
from sqlalchemy.exc import SQLAlchemyError

from nexus.api.errors import NexusError
from nexus.api.events import EventGap
from nexus.api.vms import VmEvent
from nexus.manager.db.session import Database
from nexus.manager.services.events import EventFilter, position, read, start_of

log = structlog.get_logger("events")

POLL_S = 1.0
"""How late another manager's events are seen here."""
HEARTBEAT_S = 15.0
PAGE = 100
MOST_STREAMS = 512
MOST_STREAMS_PER_TOKEN = 64


class TooManyStreams(NexusError):
    """Streams are bounded, because each holds a connection."""

    code = "too_many_requests"
    status = 429


@dataclass(frozen=True, slots=True)
class Pulse:
    """Nothing new; the reader has seen all that it wants up to ``to``."""

    to: int


Told = list[VmEvent] | EventGap | Pulse
"""What a stream says at once."""


class EventFeed:
    """Knows how far events may be read, and wakes the streams when that moves."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.heartbeat_s = HEARTBEAT_S
        self._final = 0
        self._hinted = anyio.Event()
        self._moved = anyio.Event()
        self._streams: Counter[str] = Counter()

    def hint(self) -> None:
        """Something was committed here; a hint that is lost costs ``POLL_S``."""
        self._hinted.set()

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._streams.total()

    @contextlib.contextmanager
    def admit(self, token_id: str) -> Iterator[None]:
        """A stream's place. Raises TooManyStreams."""
        mine = self._streams[token_id]
        if mine >= MOST_STREAMS_PER_TOKEN or self.streams >= MOST_STREAMS:
            whose = "this token has" if mine >= MOST_STREAMS_PER_TOKEN else "this manager has"
            raise TooManyStreams(
                f"{whose} {mine if mine >= MOST_STREAMS_PER_TOKEN else self.streams} streams of "
                "events open, and that is all it may have",
                suggestion="close some, or read with one stream and sort in the program",
            )
        self._streams[token_id] += 1
        self.hint()
        try:
            yield
        finally:
            self._streams[token_id] -= 1
            if not self._streams[token_id]:
                del self._streams[token_id]

    async def run(self) -> None:
        """Looks at the database on hints and every second, while there are streams."""
        while True:
            self._hinted = anyio.Event()
            if self._streams:
                try:
                    await self._look()
                except (SQLAlchemyError, OSError):
                    log.exception("the database does not answer; trying again")
            with anyio.move_on_after(POLL_S):
                await self._hinted.wait()

    async def _look(self) -> None:
        async with self.db.read() as session:
            final = (await position(session)).final
        self._reach(final)

    def _reach(self, final: int) -> None:
        if final > self._final:
            self._final = final
            self._moved.set()
            self._moved = anyio.Event()

    async def follow(self, wanted: EventFilter, after: int | None) -> AsyncIterator[Told]:
        """What a reader at ``after`` has to be told, for ever.

        Without ``after`` it begins with what happens from this call on, or at ``wanted.since``; 0
        is the oldest event that is kept.
        """
        async with self.db.read() as session:
            now = await position(session)
            begin = await start_of(session, wanted.since)
        self._reach(now.final)
        cursor = after if after is not None else begin if wanted.since else now.final
        if cursor <= now.newest:
            return self._follow(wanted, Pulse(cursor))
        return self._follow(wanted, EventGap(after=cursor, to=now.final, reason="ahead"))

    async def _follow(self, wanted: EventFilter, first: Pulse | EventGap) -> AsyncIterator[Told]:
        yield first
        cursor = first.to
        while True:
            moved = self._moved
            while cursor < self._final:
                found = await read(self.db, wanted, cursor, self._final, PAGE)
                if 0 < cursor < found.pruned_to:
                    yield EventGap(after=cursor, to=found.pruned_to, reason="pruned")
                if found.events:
                    yield found.events
                cursor = max(found.to, found.pruned_to)
            with anyio.move_on_after(self.heartbeat_s):
                await moved.wait()
            if not moved.is_set():
                yield Pulse(cursor)
