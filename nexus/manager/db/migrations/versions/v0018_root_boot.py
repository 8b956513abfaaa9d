"""Root disks that are made anew."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("vms", sa.Column("root_boot", sa.Integer(), nullable=True))
