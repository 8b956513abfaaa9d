"""Snapshots in the background: lease → PUT or DELETE at the agent → apply. See docs/pipelines.md.

A row is there before its host hears of it, and goes when the host has let go of all: a manager
killed anywhere leaves a row that the next one brings to its end.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import anyio
import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import HostUnreachable, NexusError
from nexus.api.snapshots import HostSnapshot, SnapshotOrder
from nexus.api.vm_snapshots import SnapshotError, SnapshotStage, SnapshotState
from nexus.manager import blueprints
from nexus.manager.agents import Agents
from nexus.manager.counts import Counts
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import VmRow
from nexus.manager.pipelines import leases
from nexus.manager.pipelines.vms import GIVE_UP_AFTER, backoff_s
from nexus.manager.uow import Caller, vm_event
from nexus.manager.waiters import Waiters

log = structlog.get_logger("pipeline.snapshots")

POLL_S = 1.0
"""The price of a lost hint."""
LOOK_S = 30.0
"""How often hosts are asked which diffs they have made whole since."""
PARALLEL = 4
"""Captures and deletions at once: each of them keeps a disk busy."""
FETCH = 32
WORK: tuple[SnapshotState, ...] = ("requested", "deleting", "importing")
"""``importing`` is held by the request that imports; one that nobody holds was cut off."""

Outcome = HostSnapshot | None | NexusError
"""What the agent answered: what it holds, None for "it is gone", or why not."""


class SnapshotPipeline:
    """The worker that sees to all snapshots; one for a manager process."""

    def __init__(
        self, db: Database, agents: Agents, waiters: Waiters, instance: str, counts: Counts
    ) -> None:
        self.db = db
        self.agents = agents
        self.waiters = waiters
        self.instance = instance
        self.counts = counts
        self.on_ready: list[Callable[[SnapshotRow], None]] = []
        """Called when one has become ready."""
        self._held: set[str] = set()
        self._wake = anyio.Event()
        self._slots = anyio.CapacityLimiter(PARALLEL)

    def hint(self) -> None:
        """There may be work. A hint that is lost costs ``POLL_S``."""
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled; then gives its leases back."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._renew)
                tasks.start_soon(self._follow_merges)
                while True:
                    self._wake = anyio.Event()
                    for row in await self._fetch():
                        tasks.start_soon(self._work, row)
                    with anyio.move_on_after(POLL_S):
                        await self._wake.wait()
        finally:
            with anyio.move_on_after(2, shield=True):
                await self._each_held(leases.give_back)

    @contextlib.contextmanager
    def holding(self, token: str) -> Iterator[None]:
        """Keeps a lease alive that a request took itself."""
        self._held.add(token)
        try:
            yield
        finally:
            self._held.discard(token)

    async def _fetch(self) -> list[SnapshotRow]:
        now = datetime.now(UTC)
        needs_work = SnapshotRow.state.in_(WORK)
        try:
            async with self.db.read() as session:
                if not await leases.any_due(session, SnapshotRow, needs_work, now):
                    return []
            async with self.db.write() as session:
                found = await leases.claim(
                    session, SnapshotRow, needs_work, self.instance, now, FETCH
                )
                return [*found]
        except (SQLAlchemyError, OSError):
            log.exception("the database does not answer; trying again")
            return []

    async def _work(self, row: SnapshotRow) -> None:
        """Calls and applies until the snapshot is settled, has to rest, or the lease is lost."""
        structlog.contextvars.bind_contextvars(snapshot_id=row.id, request_id=row.wanted_in)
        token = row.lease_token or ""
        self._held.add(token)
        try:
            found: SnapshotRow | None = row
            while found is not None:
                found = await self._round(found, token)
        except (SQLAlchemyError, OSError):
            # The lease runs out and the snapshot is tried again.
            log.exception("work on a snapshot failed")
        # Not when cancelled: then ``run`` gives the lease back.
        self._held.discard(token)
        self.waiters.notify(row.id)

    async def _round(self, seen: SnapshotRow, token: str) -> SnapshotRow | None:
        """One call and its apply; the row when there is more to do at once."""
        async with self._slots:
            begun = time.perf_counter()
            outcome = await self._call(seen)
            self.counts.snapshot_call(seen.state, time.perf_counter() - begun, outcome)
        if outcome is None:
            async with self.db.read() as session:
                diffs = await children(session, seen.id)
            await self.look_at(diffs)
        now = datetime.now(UTC)
        async with self.db.write() as session:
            row = await leases.held(session, SnapshotRow, seen.id, token)
            if row is None:
                log.info("lease lost; nothing was changed")
                return None
            if row.state != seen.state:
                return row  # it is to be deleted since
            await self._apply(session, row, outcome, now)
            leases.release(row)
        self.waiters.notify(seen.id)
        if row.state == "ready":
            for call in self.on_ready:
                call(row)
        return None

    async def _call(self, row: SnapshotRow) -> Outcome:
        try:
            agent = self.agents.of(row.host_id)
            if row.state == "requested" and row.vm_id is not None:
                order = SnapshotOrder(
                    id=row.id, vm_id=row.vm_id, kind=row.kind, parent_id=row.parent_id
                )
                return await agent.put_snapshot(order)
            await agent.delete_snapshot(row.id)
            return None
        except NexusError as error:
            return error

    async def look_at(self, diffs: Sequence[SnapshotRow]) -> None:
        """Asks their host whether diffs are whole by now: loading one makes it so, and so does
        deleting what it was the difference to."""
        for diff in diffs:
            try:
                held = await self.agents.of(diff.host_id).get_snapshot(diff.id)
            except NexusError:
                continue  # then nothing new is known
            if held != diff.held:
                async with self.db.write() as session:
                    known = await session.get(SnapshotRow, diff.id, with_for_update=True)
                    if known is not None and known.state == "ready":
                        known.held, known.needs_parent = held, held.needs_parent

    async def _follow_merges(self) -> None:
        partial = select(SnapshotRow).where(
            SnapshotRow.needs_parent.is_(True), SnapshotRow.state == "ready"
        )
        while True:
            await anyio.sleep(LOOK_S)
            try:
                async with self.db.read() as session:
                    diffs = (await session.scalars(partial)).all()
                await self.look_at(diffs)
            except (SQLAlchemyError, OSError):
                log.exception("the database does not answer; trying again")

    async def _apply(
        self, session: AsyncSession, row: SnapshotRow, outcome: Outcome, now: datetime
    ) -> None:
        match outcome:
            case NexusError():
                await self._apply_failure(session, row, outcome, now)
            case HostSnapshot():
                row.state, row.error, row.held, row.attempts = "ready", None, outcome, 0
                row.needs_parent = outcome.needs_parent
                row.blueprint = blueprints.as_captured(row.blueprint, outcome.machine)
                row.updated_at = now
                said = (
                    f"snapshot {row.name} is taken; the guest stood for {outcome.pause_ms:.0f} ms"
                )
                await _tell(session, row, now, "snapshotted", said)
            case None if row.state == "deleting":
                await _tell(session, row, now, "snapshot_deleted", f"snapshot {row.name} is gone")
                await session.delete(row)
            case None:
                fail(
                    row,
                    "import",
                    NexusError("the import was cut off", suggestion="delete it and import again"),
                    now,
                )

    async def _apply_failure(
        self, session: AsyncSession, row: SnapshotRow, error: NexusError, now: datetime
    ) -> None:
        row.attempts += 1
        refused = not isinstance(error, HostUnreachable) and (
            error.status < 500 or (row.state == "requested" and row.attempts >= GIVE_UP_AFTER)
        )
        if refused and row.state == "requested":
            fail(row, "capture", error, now)
            said = f"snapshot {row.name} was not taken: {error.message}"
            await _tell(session, row, now, "snapshot_failed", said)
        elif refused and row.state == "deleting":
            # What the host needs it for is not known here: it stays, and says so.
            fail(row, "delete", error, now)
            row.state = "ready" if row.held is not None else "error"
        else:
            rest_s = backoff_s(row.attempts, random.random())  # noqa: S311
            row.next_attempt_at = now + timedelta(seconds=rest_s)
            log.warning("call failed", error=error.message, attempts=row.attempts, rest_s=rest_s)

    async def _renew(self) -> None:
        while True:
            await anyio.sleep(leases.RENEW_S)
            try:
                await self._each_held(leases.renew)
            except (SQLAlchemyError, OSError):
                log.exception("leases were not renewed; trying again")

    async def _each_held(self, act: leases.OnTokens) -> None:
        if self._held:
            async with self.db.write() as session:
                await act(session, SnapshotRow, [*self._held], datetime.now(UTC))


async def children(session: AsyncSession, snapshot_id: str) -> Sequence[SnapshotRow]:
    """The diffs that are only the difference to a snapshot still."""
    query = select(SnapshotRow).where(
        SnapshotRow.parent_id == snapshot_id,
        SnapshotRow.needs_parent.is_(True),
        SnapshotRow.state != "error",
    )
    return (await session.scalars(query.order_by(SnapshotRow.id))).all()


def fail(row: SnapshotRow, stage: SnapshotStage, error: NexusError, now: datetime) -> None:
    """Puts a snapshot into ``error``, with what its host said."""
    row.state, row.updated_at, row.attempts = "error", now, 0
    row.error = SnapshotError(
        stage=stage,
        message=error.message,
        fault_message=error.fault_message,
        suggestion=error.suggestion,
    )


async def _tell(
    session: AsyncSession, row: SnapshotRow, now: datetime, reason: str, message: str
) -> None:
    """An event in the life of the snapshot's VM, while there is one."""
    vm = await session.get(VmRow, row.vm_id) if row.vm_id is not None else None
    if vm is not None:
        caller = Caller(row.wanted_by, row.project, row.wanted_in, "snapshots:write")
        session.add(vm_event(caller, vm, now, vm.state, reason, message))
