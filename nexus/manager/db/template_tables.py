"""The tables of templates and of their rollouts."""

from datetime import datetime

from sqlalchemy import (
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from nexus.api.rollouts import MemberState, RolloutOptions, RolloutState
from nexus.api.templates import PrebootState
from nexus.api.vms import VmSpec
from nexus.manager.boot_config import BootConfig
from nexus.manager.db.base import Base, Leased
from nexus.manager.db.columns import StoredImages, Typed, UtcDateTime


class TemplateRow(Base):
    """A template: a name, and which of its versions is the newest."""

    __tablename__ = "templates"
    __table_args__ = (UniqueConstraint("project", "name"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    name: Mapped[str] = mapped_column(String(63))
    version: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class TemplateVersionRow(Base):
    """One version. Its row never changes, and goes with its template."""

    __tablename__ = "template_versions"

    template_id: Mapped[str] = mapped_column(
        ForeignKey("templates.id", ondelete="CASCADE"), primary_key=True
    )
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    spec: Mapped[VmSpec] = mapped_column(Typed(VmSpec))
    images: Mapped[StoredImages] = mapped_column(Typed(StoredImages))
    preboot: Mapped[bool] = mapped_column(default=False, server_default=false())
    pool: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    note: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_by: Mapped[str] = mapped_column(String(128))


class PrebootRow(Leased, Base):
    """A booted VM of a version on a host, on its way to a snapshot, or as one. It outlives its
    template for as long as it takes to let go of the snapshot."""

    __tablename__ = "template_snapshots"
    __table_args__ = (
        UniqueConstraint("template_id", "version", "host_id"),
        Index(
            "ix_template_snapshots_unsettled",
            "next_attempt_at",
            sqlite_where=text("unsettled"),
            postgresql_where=text("unsettled"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    template_id: Mapped[str] = mapped_column(String(36))
    template_name: Mapped[str] = mapped_column(String(63))
    version: Mapped[int] = mapped_column(Integer)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"), index=True)
    state: Mapped[PrebootState] = mapped_column(String(16))
    message: Mapped[str | None] = mapped_column(Text)
    vm_name: Mapped[str] = mapped_column(String(63))
    snapshot_id: Mapped[str | None] = mapped_column(String(36))
    vmm_version: Mapped[str | None] = mapped_column(Text)
    """What the host ran when it was taken: another VMM makes it stale."""
    unsettled: Mapped[bool] = mapped_column(default=True)
    """Whether there is anything to do for it, or to look at."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class RolloutRow(Leased, Base):
    """A template's VMs on their way to one of its versions. The index decides that there is one
    of a template at a time."""

    __tablename__ = "rollouts"
    __table_args__ = (
        Index(
            "uq_rollouts_active",
            "template_id",
            unique=True,
            sqlite_where=text("state IN ('running', 'halted', 'rolling_back')"),
            postgresql_where=text("state IN ('running', 'halted', 'rolling_back')"),
        ),
        Index(
            "ix_rollouts_unsettled",
            "next_attempt_at",
            sqlite_where=text("unsettled"),
            postgresql_where=text("unsettled"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    template_id: Mapped[str] = mapped_column(
        ForeignKey("templates.id", ondelete="CASCADE"), index=True
    )
    template_name: Mapped[str] = mapped_column(String(63))
    version: Mapped[int] = mapped_column(Integer)
    options: Mapped[RolloutOptions] = mapped_column(Typed(RolloutOptions))
    state: Mapped[RolloutState] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    unsettled: Mapped[bool] = mapped_column(default=True)
    """Whether there is anything to do for it."""
    rest_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """Before this time no batch begins."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_by: Mapped[str] = mapped_column(String(128))
    request_id: Mapped[str | None] = mapped_column(String(128))


class RolloutVmRow(Base):
    """One VM of a rollout. No key to the VM: what became of it is told when it is gone."""

    __tablename__ = "rollout_vms"

    rollout_id: Mapped[str] = mapped_column(
        ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True
    )
    vm_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    vm_name: Mapped[str] = mapped_column(String(63))
    state: Mapped[MemberState] = mapped_column(String(16))
    message: Mapped[str | None] = mapped_column(Text)
    former: Mapped[BootConfig | None] = mapped_column(Typed(BootConfig))
    """With what it booted before."""
    generation: Mapped[int | None] = mapped_column(Integer)
    """The generation of the VM in which it was told."""
    begun_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
