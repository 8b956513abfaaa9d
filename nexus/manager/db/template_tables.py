"""The tables of templates."""

from datetime import datetime

from sqlalchemy import ForeignKey, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from nexus.api.vms import VmSpec
from nexus.manager.db.columns import StoredImages, Typed, UtcDateTime
from nexus.manager.db.tables import Base


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
    note: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_by: Mapped[str] = mapped_column(String(128))
