"""How far a VM's host is with what it fetches for it."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("vms", sa.Column("progress", sa.JSON(none_as_null=True), nullable=True))
