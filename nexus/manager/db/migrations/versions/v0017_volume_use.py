"""Volumes that begin as something, and that VMs let go of."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("volumes", sa.Column("image", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("volumes", sa.Column("source_id", sa.String(length=36), nullable=True))
    op.add_column("volumes", sa.Column("leaving", sa.Integer(), nullable=True))
