"""What guests of a network may reach of their host."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    typed = sa.JSON(none_as_null=True)
    op.add_column(
        "networks", sa.Column("allow", typed, nullable=False, server_default=sa.text("'[]'"))
    )
