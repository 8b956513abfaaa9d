"""Drives beside the root disk, limits, and the balloon."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON(none_as_null=True)
    op.add_column("vms", sa.Column("drives", json, nullable=False, server_default="[]"))
    op.add_column("vms", sa.Column("rootfs_size_mib", sa.Integer(), nullable=True))
    op.add_column("vms", sa.Column("rootfs_limits", json, nullable=True))
    op.add_column("vms", sa.Column("balloon", json, nullable=True))
    op.add_column("vms", sa.Column("devices_error", json, nullable=True))


def downgrade() -> None:
    for name in ("devices_error", "balloon", "rootfs_limits", "rootfs_size_mib", "drives"):
        op.drop_column("vms", name)
