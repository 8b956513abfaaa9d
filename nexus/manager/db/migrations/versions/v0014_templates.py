"""Templates and their versions, and where VMs come from."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON(none_as_null=True)
    time = sa.DateTime(timezone=True)
    op.create_table(
        "templates",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("updated_at", time, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_templates")),
        sa.UniqueConstraint("project", "name", name=op.f("uq_templates_project")),
    )
    op.create_table(
        "template_versions",
        sa.Column("template_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("spec", json, nullable=False),
        sa.Column("images", json, nullable=False),
        sa.Column("note", sa.String(length=255), nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["templates.id"],
            name=op.f("fk_template_versions_template_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("template_id", "version", name=op.f("pk_template_versions")),
    )
    op.add_column("vms", sa.Column("template_id", sa.String(length=36), nullable=True))
    op.add_column("vms", sa.Column("template_name", sa.String(length=63), nullable=True))
    op.add_column("vms", sa.Column("template_version", sa.Integer(), nullable=True))
    op.add_column("vms", sa.Column("template_overrides", json, nullable=True))
    op.create_index("ix_vms_template", "vms", ["template_id"])
