"""Vendor data, and config drives in any case."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("vms", sa.Column("vendor_data", sa.Text(), nullable=True))
    op.add_column(
        "vms",
        sa.Column("config_drive", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
