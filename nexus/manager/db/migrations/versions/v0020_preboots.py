"""Prebooted templates: a snapshot of a booted VM for each version and host."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.add_column(
        "template_versions",
        sa.Column("preboot", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column("snapshots", sa.Column("template_id", sa.String(length=36), nullable=True))
    op.create_table(
        "template_snapshots",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("template_id", sa.String(length=36), nullable=False),
        sa.Column("template_name", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("host_id", sa.String(length=36), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("vm_name", sa.String(length=63), nullable=False),
        sa.Column("snapshot_id", sa.String(length=36), nullable=True),
        sa.Column("vmm_version", sa.Text(), nullable=True),
        sa.Column("unsettled", sa.Boolean(), nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("updated_at", time, nullable=False),
        sa.Column("lease_owner", sa.String(length=36), nullable=True),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_expires_at", time, nullable=True),
        sa.Column("next_attempt_at", time, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_template_snapshots_host_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_template_snapshots")),
        sa.UniqueConstraint(
            "template_id", "version", "host_id", name=op.f("uq_template_snapshots_template_id")
        ),
    )
    op.create_index("ix_template_snapshots_host_id", "template_snapshots", ["host_id"])
    op.create_index(
        "ix_template_snapshots_unsettled",
        "template_snapshots",
        ["next_attempt_at"],
        sqlite_where=sa.text("unsettled"),
        postgresql_where=sa.text("unsettled"),
    )
