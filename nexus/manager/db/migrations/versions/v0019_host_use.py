"""What things take on hosts."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "host_use",
        sa.Column("host_id", sa.String(length=36), nullable=False),
        sa.Column("use", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_host_use_host_id")),
        sa.PrimaryKeyConstraint("host_id", name=op.f("pk_host_use")),
    )
