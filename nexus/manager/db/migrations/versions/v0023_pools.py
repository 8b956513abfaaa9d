"""Pools of VMs that wait, loaded and paused."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

WAITING = sa.text("pool_id IS NOT NULL")


def upgrade() -> None:
    op.add_column(
        "template_versions", sa.Column("pool", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column("vms", sa.Column("pool_id", sa.String(length=36), nullable=True))
    op.create_index(
        "ix_vms_pool", "vms", ["pool_id"], sqlite_where=WAITING, postgresql_where=WAITING
    )
