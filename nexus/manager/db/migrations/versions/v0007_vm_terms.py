"""Restart policies, how VMs last ended, and when their time is up."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON(none_as_null=True)
    time = sa.DateTime(timezone=True)
    policy = sa.Column("restart_policy", sa.String(16), nullable=False, server_default="never")
    op.add_column("vms", policy)
    restarts = sa.Column("restarts", sa.Integer(), nullable=False, server_default="0")
    op.add_column("vms", restarts)
    op.add_column("vms", sa.Column("restart_at", time, nullable=True))
    op.add_column("vms", sa.Column("last_exit", json, nullable=True))
    op.add_column("vms", sa.Column("expires_at", time, nullable=True))
    op.create_index(
        "ix_vms_expires",
        "vms",
        ["expires_at"],
        sqlite_where=sa.text("power <> 'deleted' AND expires_at IS NOT NULL"),
        postgresql_where=sa.text("power <> 'deleted' AND expires_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_vms_expires", "vms")
    for name in ("expires_at", "last_exit", "restart_at", "restarts", "restart_policy"):
        op.drop_column("vms", name)
