"""Leases on rows: taken in one short transaction, renewed while work goes on, checked at the end.

Works on every table with the ``Leased`` columns. See docs/pipelines.md.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.ids import new_id
from nexus.manager.db.base import Leased

LEASE_S = 30.0
"""How long a lease holds without renewal: how long a killed manager's work rests."""
RENEW_S = 10.0

Row = TypeVar("Row", bound=Leased)
OnTokens = Callable[[AsyncSession, type[Leased], Iterable[str], datetime], Awaitable[None]]


def is_free(row: Leased, now: datetime) -> bool:
    """Whether nobody holds the row."""
    return row.lease_expires_at is None or row.lease_expires_at <= now


def take(row: Leased, owner: str, now: datetime) -> str:
    """Puts ``owner``'s lease on a row that the session has locked, and returns its token."""
    row.lease_owner = owner
    row.lease_token = new_id()
    row.lease_expires_at = now + timedelta(seconds=LEASE_S)
    return row.lease_token


def release(row: Leased) -> None:
    """Gives the row back."""
    row.lease_owner = row.lease_token = row.lease_expires_at = None


async def claim(
    session: AsyncSession,
    table: type[Row],
    needs_work: ColumnElement[bool],
    owner: str,
    now: datetime,
    limit: int,
) -> Sequence[Row]:
    """Takes up to ``limit`` rows that need work, are due, and that nobody holds.

    Several managers never get the same row: on PostgreSQL rows locked by another one are skipped,
    on SQLite the writing transaction is alone.
    """
    due = (
        select(table)
        .where(_due(table, needs_work, now))
        .order_by(table.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = (await session.scalars(due)).all()
    for row in rows:
        take(row, owner, now)
    return rows


def _due(
    table: type[Leased], needs_work: ColumnElement[bool], now: datetime
) -> ColumnElement[bool]:
    return and_(
        needs_work,
        table.next_attempt_at <= now,
        or_(table.lease_expires_at.is_(None), table.lease_expires_at <= now),
    )


async def held(session: AsyncSession, table: type[Row], row_id: str, token: str) -> Row | None:
    """The row, locked, if ``token`` still holds it; None tells a stale worker to change nothing."""
    query = select(table).where(table.id == row_id, table.lease_token == token).with_for_update()
    return (await session.scalars(query)).one_or_none()


async def any_due(
    session: AsyncSession, table: type[Row], needs_work: ColumnElement[bool], now: datetime
) -> bool:
    """Whether ``claim`` would find anything; a look that takes no write lock."""
    query = select(table.id).where(_due(table, needs_work, now)).limit(1)
    return (await session.scalar(query)) is not None


async def renew(
    session: AsyncSession,
    table: type[Leased],
    tokens: Iterable[str],
    now: datetime,
) -> None:
    """Prolongs leases that are still held; a lost one stays lost."""
    await session.execute(
        update(table)
        .where(table.lease_token.in_(tokens))
        .values(lease_expires_at=now + timedelta(seconds=LEASE_S))
    )


async def give_back(
    session: AsyncSession,
    table: type[Leased],
    tokens: Iterable[str],
    now: datetime,
) -> None:
    """Frees the rows of these leases, so that the next worker need not wait for their end."""
    await session.execute(
        update(table)
        .where(table.lease_token.in_(tokens))
        .values(lease_owner=None, lease_token=None, lease_expires_at=None)
    )


async def drop_all(session: AsyncSession, table: type[Row]) -> None:
    """Frees every row. Only for a manager that is alone: on SQLite, at its start."""
    await session.execute(
        update(table)
        .where(table.lease_token.is_not(None))
        .values(lease_owner=None, lease_token=None, lease_expires_at=None)
    )
