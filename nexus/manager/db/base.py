"""What all tables have in common."""

from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from nexus.manager.db.columns import UtcDateTime

BIG_ID = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up by itself in INTEGER keys only."""


class Base(DeclarativeBase):
    """All tables' metadata, with names for constraints that migrations can rely on."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Leased:
    """A row that background work takes with a lease. See docs/pipelines.md."""

    if TYPE_CHECKING:
        id: Mapped[str]

    lease_owner: Mapped[str | None] = mapped_column(String(36))
    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    next_attempt_at: Mapped[datetime] = mapped_column(UtcDateTime)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
