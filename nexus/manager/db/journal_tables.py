"""The tables of what happened: events, calls, and what requests were answered."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from nexus.api.vms import VmState
from nexus.manager.db.base import BIG_ID, Base
from nexus.manager.db.columns import Typed, UtcDateTime


class VmEventRow(Base):
    """One change in a VM's life. Events outlive their VM."""

    __tablename__ = "vm_events"
    __table_args__ = (
        Index("ix_vm_events_vm", "vm_id", "id"),
        Index("ix_vm_events_project", "project", "id"),
        Index("ix_vm_events_name", "project", "vm_name", "id"),
        Index("ix_vm_events_at", "at", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    vm_id: Mapped[str] = mapped_column(String(36))
    vm_name: Mapped[str] = mapped_column(String(63), server_default="")
    """The VM's name at that time."""
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    state: Mapped[VmState] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(128))
    request_id: Mapped[str | None] = mapped_column(String(128))


class EventHorizonRow(Base):
    """One row: events up to ``pruned_to`` were deleted for their age."""

    __tablename__ = "event_horizon"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    pruned_to: Mapped[int] = mapped_column(BigInteger)


class IdempotencyRow(Base):
    """A request's Idempotency-Key, written in the transaction of what the request changed."""

    __tablename__ = "idempotency_keys"

    project: Mapped[str] = mapped_column(String(63), primary_key=True)
    token_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    summary: Mapped[str] = mapped_column(Text)
    """The first request's method and path, for people."""
    request_id: Mapped[str] = mapped_column(String(128))
    instance: Mapped[str] = mapped_column(String(36))
    """The manager that serves the request."""
    target: Mapped[str | None] = mapped_column(String(128))
    status: Mapped[int | None] = mapped_column(Integer)
    body: Mapped[str | None] = mapped_column(Text)
    """The answer; None until the request has come to one."""
    is_final: Mapped[bool] = mapped_column()
    """Whether the answer was the request's last word, and not one of when its change was made."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class AuditRow(Base):
    """One mutating call: who did what to what, in which request, and how it ended."""

    __tablename__ = "audit"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012

    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    actor: Mapped[str] = mapped_column(String(128))
    permission: Mapped[str] = mapped_column(String(32))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str | None] = mapped_column(String(128))
    before: Mapped[dict[str, object] | None] = mapped_column(Typed(dict[str, object]))
    after: Mapped[dict[str, object] | None] = mapped_column(Typed(dict[str, object]))
    request_id: Mapped[str | None] = mapped_column(String(128))
    result: Mapped[str] = mapped_column(String(64))
    """``ok``, the error code of the refusal, or ``pending`` while it is done."""
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
