"""Idempotency keys as rows: a request's claim on its key, written with the change it makes.

A row is there if and only if the change is: it is inserted in the change's own transaction, and its
primary key decides between two requests at once. See docs/api.md.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Ok, Wire
from nexus.api.errors import ErrorBody, NexusError
from nexus.manager.db.journal_tables import IdempotencyRow
from nexus.manager.db.session import Database

KEPT = timedelta(hours=24)
MOST_PRUNED = 1000
CREATED = 201


class KeyConflict(NexusError):
    """The key belongs to another request."""

    code = "idempotency_conflict"
    status = 409


class KeyBusy(NexusError):
    """The first request with this key has not come to its end."""

    code = "idempotency_in_progress"
    status = 409


class Done(NexusError):
    """What this request asks for was done under its key before; nothing was done now.

    A service that can, answers with the thing as it is now; else the stored answer is given.
    """

    code = "idempotency_conflict"
    status = 409

    def __init__(self, row: IdempotencyRow) -> None:
        super().__init__("this was done already", suggestion="send the request again")
        made = json.loads(row.body or "{}").get("items")
        self.ids: list[str] = [item["id"] for item in made] if made else [row.target or ""]
        """What the first request made or changed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that carries a key."""

    project: str
    token_id: str
    key: str
    fingerprint: str
    """A hash of method, path, query and body: what makes two requests the same one."""
    summary: str
    """``POST /v1/vms``"""
    request_id: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def name(self) -> tuple[str, str, str]:
        """What the row is found by."""
        return self.project, self.token_id, self.key


@dataclass(slots=True)
class Claim:
    """One request's hold on its key, from the first look to the last statement."""

    asked: Asked
    instance: str
    """The manager that serves the request."""
    status: Callable[[], int]
    """What the route answers when all is well; known once the request was routed."""
    answers_ok: Callable[[], bool]
    """Whether the route answers no more than ``{"ok": true}``."""
    waits: bool = False
    """Whether the request holds on after its change: its answer is not known with the change."""
    earlier: IdempotencyRow | None = None
    """The row of the first request, whose answer did not come to be stored."""
    expired: bool = False
    """Whether a row of the same name lies there that is too old."""
    written: bool = False
    """Whether this request's change is committed, and the row with it."""
    lost: bool = False
    """Whether another request with the key was first."""
    done: bool = False
    """Whether ``earlier`` made the change, so that this request made none."""
    body: str | None = None
    """The answer that was stored with the change."""

    async def enter(self, session: AsyncSession) -> None:
        """The first statement of a change: takes the key, or raises Done or KeyBusy."""
        if self.written:
            return
        if self.earlier is not None:
            await self._take_over(session, self.earlier)
            return
        if self.expired:
            await session.execute(
                delete(IdempotencyRow).where(
                    is_named(self.asked), IdempotencyRow.expires_at <= self.asked.at
                )
            )
        try:
            await session.execute(insert(IdempotencyRow).values(**new_row(self)))
        except IntegrityError:
            self.lost = True
            raise busy(self.asked) from None

    async def _take_over(self, session: AsyncSession, row: IdempotencyRow) -> None:
        if row.status is not None:
            self.done = True
            raise Done(row)
        taken = await session.execute(
            update(IdempotencyRow)
            .where(is_named(self.asked), IdempotencyRow.instance == row.instance)
            .values(instance=self.instance)
            .returning(IdempotencyRow.key)
        )
        if taken.first() is None:
            self.lost = True
            raise busy(self.asked)

    async def leave(
        self,
        session: AsyncSession,
        target: str | None,
        answer: Callable[[], Wire] | None,
        *,
        once: bool = False,
    ) -> None:
        """The last statement of a change: stores what a replay answers from now on.

        A request that answers more than ``ok`` and makes no answer within its change stores none:
        cut off before its end, it is done again; with ``once`` it is refused instead.
        """
        if self.written:
            return
        status, is_final = self.status(), not self.waits
        if once:
            status, is_final = KeyConflict.status, False
            self.body = self._unknown_end().model_dump_json(exclude_none=True)
        elif answer is not None:
            self.body = answer().model_dump_json()
        elif self.answers_ok():
            self.body = Ok().model_dump_json()
        elif status == CREATED:
            raise TypeError(f"{self.asked.summary} makes something: set unit.answer in its change")
        else:
            return
        await session.execute(
            update(IdempotencyRow)
            .where(is_named(self.asked))
            .values(target=target, status=status, body=self.body, is_final=is_final)
        )

    def _unknown_end(self) -> ErrorBody:
        return ErrorBody(
            error=KeyConflict.code,
            message=(
                f"{self.asked.summary} was begun under this Idempotency-Key at "
                f"{_shown(self.asked.at)}, request id {self.asked.request_id}; "
                "how it ended is not known, and it is not begun again"
            ),
            status=KeyConflict.status,
            suggestion="see what came of it; to do it all the same, send it with a new key",
            request_id=self.asked.request_id,
        )


def is_named(asked: Asked) -> Any:
    """The condition that finds a request's row."""
    return and_(
        IdempotencyRow.project == asked.project,
        IdempotencyRow.token_id == asked.token_id,
        IdempotencyRow.key == asked.key,
    )


def new_row(claim: Claim) -> dict[str, object]:
    """The columns of a row without an answer."""
    asked = claim.asked
    return {
        "project": asked.project,
        "token_id": asked.token_id,
        "key": asked.key,
        "fingerprint": asked.fingerprint,
        "summary": asked.summary,
        "request_id": asked.request_id,
        "instance": claim.instance,
        "is_final": False,
        "created_at": asked.at,
        "expires_at": asked.at + KEPT,
    }


async def find(db: Database, asked: Asked) -> IdempotencyRow | None:
    """The row of this key, expired or not."""
    async with db.read() as session:
        return await session.scalar(select(IdempotencyRow).where(is_named(asked)))


async def finish(db: Database, claim: Claim, status: int, body: str) -> None:
    """Stores the answer that was given, for those that ask again."""
    values = {"status": status, "body": body, "is_final": True}
    try:
        async with db.write() as session:
            if claim.written or claim.earlier is not None:
                await session.execute(
                    update(IdempotencyRow).where(is_named(claim.asked)).values(**values)
                )
                return
            if claim.expired:
                await session.execute(delete(IdempotencyRow).where(is_named(claim.asked)))
            await session.execute(insert(IdempotencyRow).values(**new_row(claim), **values))
    except IntegrityError:
        # Another manager served the same request meanwhile; its answer stands.
        return


async def prune(db: Database, now: datetime) -> int:
    """Removes keys that are too old, some at a time; returns how many."""
    name = tuple_(IdempotencyRow.project, IdempotencyRow.token_id, IdempotencyRow.key)
    old = (
        select(IdempotencyRow.project, IdempotencyRow.token_id, IdempotencyRow.key)
        .where(IdempotencyRow.expires_at <= now)
        .limit(MOST_PRUNED)
    )
    async with db.read() as session:
        names = (await session.execute(old)).all()
    if names:
        async with db.write() as session:
            await session.execute(delete(IdempotencyRow).where(name.in_(names)))
    return len(names)


def conflict(first: Asked | IdempotencyRow) -> KeyConflict:
    """The refusal that names the request which has the key."""
    at = first.at if isinstance(first, Asked) else first.created_at
    return KeyConflict(
        f"this Idempotency-Key belongs to another request: {first.summary} "
        f"at {_shown(at)}, request id {first.request_id}",
        suggestion="send a new key with a new request; the same key only with the same request",
    )


def busy(asked: Asked) -> KeyBusy:
    """The refusal for one that comes while the first request is still going on."""
    return KeyBusy(
        "the first request with this Idempotency-Key is still going on",
        suggestion=f"send it again in a moment, with the same key {asked.key!r}",
    )


def _shown(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
