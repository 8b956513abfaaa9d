"""DHCP on networks, and addresses that are handed out only to who asks for them."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    no = sa.false()
    op.add_column("networks", sa.Column("dhcp", sa.Boolean(), nullable=False, server_default=no))
    typed = sa.JSON(none_as_null=True)
    op.add_column(
        "networks", sa.Column("reserved", typed, nullable=False, server_default=sa.text("'[]'"))
    )
