"""Events: how far they may be read, reading them in pages, and letting go of old ones.

See docs/events.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile

from sqlalchemy import ColumnElement, delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import NotFound
from nexus.api.vms import VmEvent, VmState
from nexus.manager.db.journal_tables import EventHorizonRow, VmEventRow
from nexus.manager.db.session import Database
from nexus.manager.services.vms import find, to_event

PRUNE_BATCH = 1000
"""So many rows a transaction, so that nobody waits long for SQLite's one write lock."""


_ENDLESS = 2**62


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a reader wants; empty conditions let all pass."""

    project: str
    vm_id: str | None = None
    states: Sequence[VmState] = ()
    reasons: Sequence[str] = ()
    since: datetime | None = None

    def conditions(self) -> Iterable[ColumnElement[bool]]:
        """For a query on ``VmEventRow``."""
        yield VmEventRow.project == self.project
        if self.vm_id is not None:
            yield VmEventRow.vm_id == self.vm_id
        if self.states:
            yield VmEventRow.state.in_(self.states)
        if self.reasons:
            yield VmEventRow.reason.in_(self.reasons)
        if self.since is not None:
            yield VmEventRow.at >= self.since


@dataclass(frozen=True, slots=True)
class Position:
    """Where the events stand."""

    final: int
    """No event will yet appear with this id or a lower one: readers may go so far."""
    newest: int
    """The highest id that was ever drawn."""


async def position(session: AsyncSession) -> Position:
    """Where the events stand at this moment.

    On SQLite writers are alone, so ids appear in their order. On PostgreSQL transactions that run
    hold ids back; migration 0003 tells how that is known.
    """
    if session.get_bind().dialect.name == "postgresql":
        row = (
            await session.execute(text("SELECT final, newest FROM nexus_event_position()"))
        ).one()
        return Position(row.final, row.newest)
    newest = max(await session.scalar(select(func.max(VmEventRow.id))) or 0, await _pruned(session))
    return Position(newest, newest)


async def _pruned(session: AsyncSession) -> int:
    return await session.scalar(select(EventHorizonRow.pruned_to)) or 0


@dataclass(frozen=True, slots=True)
class Reading:
    """A page of events, and how far it goes: all that matches up to ``to`` is in it."""

    events: list[VmEvent]
    to: int
    pruned_to: int
    """Up to where events were gone already when the page was read."""


async def read(db: Database, wanted: EventFilter, after: int, upto: int, limit: int) -> Reading:
    """The first ``limit`` events behind ``after`` and up to ``upto``, in the order of their ids."""
    query = (
        select(VmEventRow)
        .where(VmEventRow.id > after, VmEventRow.id <= upto, *wanted.conditions())
        .order_by(VmEventRow.id)
        .limit(limit)
    )
    async with db.scan() as session:
        rows = (await session.scalars(query)).all()
        # Behind the rows: what was pruned before they were read shows in the horizon now.
        pruned_to = await _pruned(session)
    to = rows[-1].id if len(rows) == limit else max(after, upto)
    return Reading([to_event(row) for row in rows], to, pruned_to)


async def page(
    db: Database, wanted: EventFilter, after: int, limit: int
) -> tuple[list[VmEvent], int | None]:
    """A page of events behind ``after``, and where the next one begins, if there is one."""
    async with db.scan() as session:
        upto = (await position(session)).final
        after = max(after, await start_of(session, wanted.since))
    return await _page(db, wanted, after, upto, limit)


async def page_of_vm(
    db: Database, wanted: EventFilter, after: int, limit: int
) -> tuple[list[VmEvent], int | None]:
    """The same for one VM, with all that is committed: its events are written under its row's lock,
    so they appear in their order, and nobody's running transaction holds them back."""
    return await _page(db, wanted, after, _ENDLESS, limit)


async def _page(
    db: Database, wanted: EventFilter, after: int, upto: int, limit: int
) -> tuple[list[VmEvent], int | None]:
    found = (await read(db, wanted, after, upto, limit + 1)).events
    return found[:limit], found[limit - 1].id if len(found) > limit else None


async def start_of(session: AsyncSession, since: datetime | None) -> int:
    """An id that lies before every event at or after ``since``."""
    if since is None:
        return 0
    first = await session.scalar(select(func.min(VmEventRow.id)).where(VmEventRow.at >= since))
    if first is None:
        return (await position(session)).final
    return first - 1


async def vm_id_of(session: AsyncSession, project: str, ref: str) -> str:
    """The id of a VM, also of one that is gone but has events. Raises NotFound."""
    try:
        return (await find(session, project, ref)).id
    except NotFound:
        known = select(VmEventRow.vm_id).where(VmEventRow.project == project)
        for named in (VmEventRow.vm_id == ref, VmEventRow.vm_name == ref):
            latest = known.where(named).order_by(VmEventRow.id.desc()).limit(1)
            if (vm_id := await session.scalar(latest)) is not None:
                return vm_id
        raise


async def prune(db: Database, cutoff: datetime) -> int:
    """Deletes the oldest events as long as they are from before ``cutoff``; how many they were."""
    pruned = 0
    while True:
        async with db.write() as session:
            final = (await position(session)).final
            oldest = await session.execute(
                select(VmEventRow.id, VmEventRow.at)
                .where(VmEventRow.id <= final)
                .order_by(VmEventRow.id)
                .limit(PRUNE_BATCH)
            )
            old = [row.id for row in takewhile(lambda row: row.at < cutoff, oldest.all())]
            if old:
                await session.execute(
                    update(EventHorizonRow)
                    .where(EventHorizonRow.pruned_to < old[-1])
                    .values(pruned_to=old[-1])
                )
                await session.execute(delete(VmEventRow).where(VmEventRow.id <= old[-1]))
        pruned += len(old)
        if len(old) < PRUNE_BATCH:
            return pruned
