"""One unit of work: every change knows who made it, in which request, and from what to what.

Services change rows only inside ``change``; events and the audit row are written in the same
transaction. A refused change leaves an audit row of its own.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Wire
from nexus.api.errors import ClientGone, NexusError
from nexus.api.vms import VmState
from nexus.manager.db.journal_tables import AuditRow, VmEventRow
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.etags import IfMatch
from nexus.manager.keys import Claim

PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf something is done."""

    actor: str
    project: str
    request_id: str | None
    permission: str
    claim: Claim | None = field(default=None, compare=False, repr=False)
    """The request's hold on its Idempotency-Key, when it carries one."""
    if_match: IfMatch | None = None
    """As what the caller has seen the thing that is to be changed."""


SYSTEM = Caller(actor="system", project="default", request_id=None, permission="system")
"""Nexus itself: what a guest or a host did, and what pipelines decide."""


@dataclass(slots=True)
class UnitOfWork:
    """One change in the making. Fill in ``target``, ``before`` and ``after`` as they are known."""

    session: AsyncSession
    caller: Caller
    action: str
    """``vm.create``, ``image.delete`` …"""
    at: datetime
    target: str | None = None
    before: dict[str, object] | None = None
    after: dict[str, object] | None = None
    answer: Callable[[], Wire] | None = None
    """What the request answers, for a request that answers more than ``ok``: stored with its
    Idempotency-Key in this transaction, so that asking again gives the same even after a crash."""
    once: bool = False
    """Whether what follows this change must not be begun a second time under one Idempotency-Key,
    also when nobody knows how the first time ended."""
    events: list[VmEventRow] = field(default_factory=list)

    def event(self, vm: VmRow, state: VmState, reason: str, message: str) -> None:
        """Notes a change in a VM's life, in this unit's transaction."""
        row = vm_event(self.caller, vm, self.at, state, reason, message)
        self.events.append(row)
        self.session.add(row)


def vm_event(
    caller: Caller, vm: VmRow, at: datetime, state: VmState, reason: str, message: str
) -> VmEventRow:
    """An event row for a change of ``vm`` that ``caller`` caused."""
    return VmEventRow(
        project=vm.project,
        vm_id=vm.id,
        vm_name=vm.name,
        at=at,
        state=state,
        reason=reason,
        message=message,
        actor=caller.actor,
        request_id=caller.request_id,
    )


@contextlib.asynccontextmanager
async def change(
    db: Database, caller: Caller, action: str, target: str | None = None
) -> AsyncIterator[UnitOfWork]:
    """A writing transaction with its audit row. Raising rolls back and audits the refusal.

    The caller's Idempotency-Key is taken first and in the same transaction. Raises ``keys.Done``
    or ``keys.KeyBusy`` when another request with this key was first; then nothing is changed.
    """
    started_at = datetime.now(UTC)
    unit: UnitOfWork | None = None
    claim = caller.claim
    try:
        async with db.write() as session:
            if claim is not None:
                await claim.enter(session)
            unit = UnitOfWork(session, caller, action, started_at, target=target)
            yield unit
            session.add(_audit(unit, "ok"))
            if claim is not None:
                await claim.leave(session, unit.target, unit.answer, once=unit.once)
        if claim is not None:
            claim.written = True
    except NexusError as refusal:
        if unit is not None:
            async with db.write() as session:
                unit.session = session
                session.add(_audit(unit, refusal.code))
        raise


@dataclass(slots=True)
class Deed:
    """Something that is done outside of the database. ``after`` is told in its audit row."""

    after: dict[str, object] | None = None


@contextlib.asynccontextmanager
async def deed(
    db: Database, caller: Caller, action: str, *, target: str, before: dict[str, object]
) -> AsyncIterator[Deed]:
    """For what is done on a host and is not rolled back: its audit row says ``pending`` before it
    begins, and how it ended afterwards. One that stays pending tells of a death in between."""
    row = AuditRow(
        project=caller.project,
        actor=caller.actor,
        permission=caller.permission,
        action=action,
        target=target,
        before=before,
        request_id=caller.request_id,
        result=PENDING,
        started_at=datetime.now(UTC),
    )
    async with db.write() as session:
        session.add(row)
        await session.flush()
        row_id = row.id
    done, result = Deed(), "internal"
    try:
        yield done
        result = "ok"
    except NexusError as refusal:
        result = refusal.code
        raise
    except anyio.get_cancelled_exc_class():
        result = ClientGone.code
        raise
    finally:
        with anyio.CancelScope(shield=True):
            async with db.write() as session:
                ended = {"result": result, "finished_at": datetime.now(UTC), "after": done.after}
                await session.execute(update(AuditRow).where(AuditRow.id == row_id).values(**ended))


def _audit(unit: UnitOfWork, result: str) -> AuditRow:
    return AuditRow(
        project=unit.caller.project,
        actor=unit.caller.actor,
        permission=unit.caller.permission,
        action=unit.action,
        target=unit.target,
        before=unit.before,
        after=unit.after if result == "ok" else None,
        request_id=unit.caller.request_id,
        result=result,
        started_at=unit.at,
        finished_at=datetime.now(UTC),
    )
