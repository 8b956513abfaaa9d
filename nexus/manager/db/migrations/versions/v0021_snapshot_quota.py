"""What snapshots were promised of their host's disk."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "snapshots",
        sa.Column("disk_mib", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
    )
