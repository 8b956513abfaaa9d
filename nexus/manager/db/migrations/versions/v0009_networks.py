"""Networks and port forwards; addresses belong to networks instead of hosts.

Each host's own network becomes a row, and the NICs that are there are on it.
"""

import json
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from nexus.ids import new_id

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    typed = sa.JSON(none_as_null=True)
    networks = op.create_table(
        "networks",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("host_id", sa.String(length=36), nullable=True),
        sa.Column("cidr", sa.String(length=18), nullable=False),
        sa.Column("gateway", sa.String(length=15), nullable=True),
        sa.Column("uplink", sa.String(length=15), nullable=True),
        sa.Column("isolate_vms", sa.Boolean(), nullable=False),
        sa.Column("dns", typed, nullable=True),
        sa.Column("bridge", sa.String(length=15), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("error", typed, nullable=True),
        sa.Column("last_address", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_networks_host_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_networks")),
        sa.UniqueConstraint("project", "name", name=op.f("uq_networks_project")),
    )
    op.create_index("ix_networks_host_id", "networks", ["host_id"])
    op.create_table(
        "port_forwards",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.Column("host_id", sa.String(length=36), nullable=False),
        sa.Column("protocol", sa.String(length=8), nullable=False),
        sa.Column("host_port", sa.Integer(), nullable=False),
        sa.Column("guest_port", sa.Integer(), nullable=False),
        sa.Column("iface", sa.String(length=8), nullable=False),
        sa.Column("ip", sa.String(length=15), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name=op.f("fk_port_forwards_vm_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_port_forwards_host_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_port_forwards")),
        sa.UniqueConstraint(
            "host_id", "protocol", "host_port", name=op.f("uq_port_forwards_host_id")
        ),
    )
    op.create_index("ix_port_forwards_vm_id", "port_forwards", ["vm_id"])
    op.add_column("hosts", sa.Column("networks", typed, nullable=False, server_default="[]"))
    homes = _home_networks(networks)
    _put_nics_on(homes)
    _readdress(homes)
    # Not in a batch: that would drop and make the table anew, and VMs refer to its rows.
    op.drop_column("hosts", "last_address")


def _home_networks(networks: sa.Table) -> dict[str, str]:
    """Makes each host's own network; returns their ids by host."""
    bind = op.get_bind()
    hosts = sa.table(
        "hosts",
        sa.column("id", sa.String),
        sa.column("network", sa.JSON),
        sa.column("last_address", sa.BigInteger),
    )
    homes: dict[str, str] = {}
    now = datetime.now(UTC)
    for host in bind.execute(sa.select(hosts).order_by(hosts.c.id)).all():
        wire = host.network if isinstance(host.network, dict) else json.loads(host.network)
        home = new_id()
        bind.execute(
            networks.insert().values(
                id=home,
                project="default",
                name="default" if not homes else f"default-{host.id[-12:]}",
                kind="nat",
                host_id=host.id,
                cidr=wire["cidr"],
                gateway=wire["gateway"],
                isolate_vms=False,
                bridge=wire["bridge"],
                state="ready",
                last_address=host.last_address,
                created_at=now,
                updated_at=now,
            )
        )
        homes[host.id] = home
    return homes


def _put_nics_on(homes: dict[str, str]) -> None:
    bind = op.get_bind()
    vms = sa.table(
        "vms", sa.column("id", sa.String), sa.column("host_id"), sa.column("nics", sa.JSON)
    )
    for vm in bind.execute(sa.select(vms)).all():
        nics = vm.nics if isinstance(vm.nics, list) else json.loads(vm.nics)
        for nic in nics:
            nic["network_id"] = homes[vm.host_id]
        bind.execute(vms.update().where(vms.c.id == vm.id).values(nics=nics))


def _readdress(homes: dict[str, str]) -> None:
    bind = op.get_bind()
    old = sa.table(
        "ip_addresses",
        sa.column("host_id", sa.String),
        sa.column("address", sa.BigInteger),
        sa.column("vm_id", sa.String),
    )
    kept = bind.execute(sa.select(old)).all()
    op.drop_table("ip_addresses")
    new = op.create_table(
        "ip_addresses",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("network_id", sa.String(length=36), nullable=False),
        sa.Column("address", sa.BigInteger(), nullable=False),
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["network_id"], ["networks.id"], name=op.f("fk_ip_addresses_network_id")
        ),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name=op.f("fk_ip_addresses_vm_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ip_addresses")),
        sa.UniqueConstraint("network_id", "address", name=op.f("uq_ip_addresses_network_id")),
    )
    op.create_index("ix_ip_addresses_vm_id", "ip_addresses", ["vm_id"])
    if kept:
        rows = [
            {"network_id": homes[each.host_id], "address": each.address, "vm_id": each.vm_id}
            for each in kept
        ]
        op.bulk_insert(new, rows)
