"""Quotas of projects, and what each VM's disks were promised."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

MIB = 1 << 20


def upgrade() -> None:
    json = sa.JSON(none_as_null=True)
    op.create_table(
        "project_quotas",
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("limits", json, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_project_quotas")),
    )
    op.add_column("vms", sa.Column("disk_mib", sa.Integer(), nullable=False, server_default="0"))
    vms = sa.table(
        "vms",
        sa.column("id", sa.String),
        sa.column("rootfs", json),
        sa.column("rootfs_size_mib", sa.Integer),
        sa.column("drives", json),
        sa.column("disk_mib", sa.Integer),
    )
    connection = op.get_bind()
    for vm in connection.execute(sa.select(vms)).all():
        own = sum(_own_mib(drive) for drive in vm.drives or ())
        if vm.rootfs is not None:
            own += vm.rootfs_size_mib or _size_mib(vm.rootfs)
        connection.execute(sa.update(vms).where(vms.c.id == vm.id).values(disk_mib=own))


def _own_mib(drive: dict[str, object]) -> int:
    if drive.get("volume") or (drive.get("image") and drive.get("read_only")):
        return 0
    return int(str(drive.get("size_mib") or _size_mib(drive.get("image"))))


def _size_mib(image: object) -> int:
    return -(-int(image["size_bytes"]) // MIB) if isinstance(image, dict) else 0
