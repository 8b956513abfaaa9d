"""What a build was asked for beside its recipe."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "image_builds",
        sa.Column("options", sa.JSON(none_as_null=True), nullable=False, server_default="{}"),
    )
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column("image_builds", "options", server_default=None)


def downgrade() -> None:
    op.drop_column("image_builds", "options")
