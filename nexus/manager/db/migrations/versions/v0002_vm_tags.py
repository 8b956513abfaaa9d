"""VMs' tags as rows, so that VMs are found by them through an index."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "vm_tags",
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=63), nullable=False),
        sa.Column("value", sa.String(length=255), nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name=op.f("fk_vm_tags_vm_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("vm_id", "key", name=op.f("pk_vm_tags")),
    )
    op.create_index("ix_vm_tags_lookup", "vm_tags", ["project", "key", "value", "vm_id"])
    fill()


def fill() -> None:
    """Makes rows of the tags that VMs have already."""
    connection = op.get_bind()
    vms = connection.execute(sa.text("SELECT id, project, tags FROM vms")).all()
    rows = [
        {"vm_id": vm_id, "key": key, "value": value, "project": project}
        for vm_id, project, stored in vms
        for key, value in (json.loads(stored) if isinstance(stored, str) else stored).items()
    ]
    if rows:
        connection.execute(
            sa.text(
                "INSERT INTO vm_tags (vm_id, key, value, project)"
                " VALUES (:vm_id, :key, :value, :project)"
            ),
            rows,
        )


def downgrade() -> None:
    op.drop_index("ix_vm_tags_lookup", table_name="vm_tags")
    op.drop_table("vm_tags")
