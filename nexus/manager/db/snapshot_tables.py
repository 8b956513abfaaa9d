"""The tables of snapshots and of when they are taken by themselves."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from nexus.api.common import Engine
from nexus.api.snapshots import HostSnapshot, SnapshotKind
from nexus.api.vm_snapshots import SnapshotError, SnapshotState
from nexus.manager.db.base import Base, Leased
from nexus.manager.db.columns import Blueprint, Typed, UtcDateTime


class SnapshotRow(Leased, Base):
    """A snapshot of a VM. It outlives the VM: everything that clones are made of is in it."""

    __tablename__ = "snapshots"
    __table_args__ = (
        UniqueConstraint("project", "name"),
        Index(
            "uq_snapshots_capturing",
            "vm_id",
            unique=True,
            sqlite_where=text("state = 'requested'"),
            postgresql_where=text("state = 'requested'"),
        ),
        Index("ix_snapshots_vm", "vm_id", "id"),
        Index("ix_snapshots_state", "state", "next_attempt_at"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    name: Mapped[str] = mapped_column(String(63))
    vm_id: Mapped[str | None] = mapped_column(String(36))
    """The VM it was taken of; no foreign key, because that may be gone. None when imported."""
    vm_name: Mapped[str] = mapped_column(String(63))
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"), index=True)
    engine: Mapped[Engine] = mapped_column(String(16))
    kind: Mapped[SnapshotKind] = mapped_column(String(8))
    parent_id: Mapped[str | None] = mapped_column(String(36), index=True)
    """The snapshot that a diff was taken after."""
    needs_parent: Mapped[bool] = mapped_column(default=False)
    """Whether it is only the difference still: hosts merge chains in the background."""
    state: Mapped[SnapshotState] = mapped_column(String(16))
    error: Mapped[SnapshotError | None] = mapped_column(Typed(SnapshotError))
    blueprint: Mapped[Blueprint] = mapped_column(Typed(Blueprint))
    held: Mapped[HostSnapshot | None] = mapped_column(Typed(HostSnapshot))
    """What the host says of it once it is captured."""
    disk_mib: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """What it was promised: its memory, and the disks by the size that guests see."""
    scheduled: Mapped[bool] = mapped_column(default=False)
    """Whether its VM's schedule made it, and may prune it."""
    template_id: Mapped[str | None] = mapped_column(String(36))
    """The template whose prebooted VM it is: Nexus' own, and not shown unless asked for."""
    wanted_by: Mapped[str] = mapped_column(String(128))
    wanted_in: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SnapshotScheduleRow(Base):
    """When snapshots of a VM are taken by themselves, and how many of them are kept."""

    __tablename__ = "snapshot_schedules"

    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    every_s: Mapped[int] = mapped_column(Integer)
    keep: Mapped[int] = mapped_column(Integer)
    next_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    last_error: Mapped[str | None] = mapped_column(Text)
    """Why the last one that was due was not taken."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
