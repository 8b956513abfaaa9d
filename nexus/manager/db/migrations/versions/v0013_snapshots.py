"""Snapshots, their schedules, and where a VM was loaded from."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    typed = sa.JSON(none_as_null=True)
    op.add_column(
        "vms",
        sa.Column("track_dirty_pages", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column("vms", sa.Column("origin_id", sa.String(length=36), nullable=True))
    op.add_column("vms", sa.Column("origin_name", sa.String(length=63), nullable=True))
    op.add_column("vms", sa.Column("origin_boot", sa.Integer(), nullable=True))
    op.add_column("vms", sa.Column("identity", typed, nullable=True))
    op.create_index("ix_vms_origin_id", "vms", ["origin_id"])
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("vm_id", sa.String(length=36), nullable=True),
        sa.Column("vm_name", sa.String(length=63), nullable=False),
        sa.Column("host_id", sa.String(length=36), nullable=False),
        sa.Column("engine", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("parent_id", sa.String(length=36), nullable=True),
        sa.Column("needs_parent", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("error", typed, nullable=True),
        sa.Column("blueprint", typed, nullable=False),
        sa.Column("held", typed, nullable=True),
        sa.Column("scheduled", sa.Boolean(), nullable=False),
        sa.Column("wanted_by", sa.String(length=128), nullable=False),
        sa.Column("wanted_in", sa.String(length=128), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_owner", sa.String(length=36), nullable=True),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_snapshots_host_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
        sa.UniqueConstraint("project", "name", name=op.f("uq_snapshots_project")),
    )
    op.create_index("ix_snapshots_host_id", "snapshots", ["host_id"])
    op.create_index("ix_snapshots_parent_id", "snapshots", ["parent_id"])
    op.create_index("ix_snapshots_vm", "snapshots", ["vm_id", "id"])
    op.create_index("ix_snapshots_state", "snapshots", ["state", "next_attempt_at"])
    op.create_index(
        "uq_snapshots_capturing",
        "snapshots",
        ["vm_id"],
        unique=True,
        sqlite_where=sa.text("state = 'requested'"),
        postgresql_where=sa.text("state = 'requested'"),
    )
    op.create_table(
        "snapshot_schedules",
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("every_s", sa.Integer(), nullable=False),
        sa.Column("keep", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name=op.f("fk_snapshot_schedules_vm_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("vm_id", name=op.f("pk_snapshot_schedules")),
    )
    op.create_index("ix_snapshot_schedules_next_at", "snapshot_schedules", ["next_at"])
