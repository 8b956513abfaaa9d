"""When a VM's time is up: read from a request, and carried out when it comes."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, and_, select

from nexus.api.endings import LONGEST_S
from nexus.api.errors import ValidationFailed
from nexus.manager import wanting
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.uow import SYSTEM, change

AT_ONCE = 100
"""So many in one transaction."""


def deadline(now: datetime, ttl: int | None, expires_at: datetime | None) -> datetime | None:
    """The time a request asks for, in UTC; None for a VM that stays.

    Raises ValidationFailed for two times, one that has passed, or one beyond ten years.
    """
    if ttl is not None:
        if expires_at is not None:
            raise ValidationFailed(
                "ttl and expires_at are two ways to say the same",
                suggestion="give one of them",
            )
        return now + timedelta(seconds=ttl)
    if expires_at is None:
        return None
    if not now < expires_at <= now + timedelta(seconds=LONGEST_S):
        raise ValidationFailed(
            "expires_at: give a time that is yet to come, within ten years",
            suggestion=f"it is now {now.isoformat(timespec='seconds')}",
        )
    return expires_at.astimezone(UTC)


def _is_due(now: datetime) -> ColumnElement[bool]:
    return and_(VmRow.power != "deleted", VmRow.expires_at <= now)


async def next_deadline(db: Database) -> datetime | None:
    """When the next VM's time is up; one look into an index."""
    query = select(VmRow.expires_at).where(VmRow.power != "deleted", VmRow.expires_at.is_not(None))
    async with db.read() as session:
        return await session.scalar(query.order_by(VmRow.expires_at).limit(1))


class _NothingDue(Exception):
    """Another manager has done it."""


async def expire(db: Database, now: datetime) -> Sequence[VmRow]:
    """Wants those VMs deleted whose time is up, at most ``AT_ONCE``; the rows as committed.

    Several managers never expire one VM twice: on PostgreSQL rows locked by another one are
    skipped, and a VM that is being deleted is not due.
    """
    query = select(VmRow).where(_is_due(now)).order_by(VmRow.expires_at).limit(AT_ONCE)
    try:
        async with change(db, SYSTEM, "vm.expire") as unit:
            found = await unit.session.scalars(query.with_for_update(skip_locked=True))
            rows = found.all()
            if not rows:
                raise _NothingDue
            for row in rows:
                because = ("expired", f"its time was up at {_shown(row.expires_at)}")
                wanting.act(unit, row, "delete", because=because)
            unit.target = rows[0].id
            unit.after = {"ids": [row.id for row in rows]}
    except _NothingDue:
        return []
    return rows


def _shown(at: datetime | None) -> str:
    return at.isoformat(timespec="seconds") if at else "-"
