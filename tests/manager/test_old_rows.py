"""A database of the first version, with a host and a VM in it, brought up to date."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy import Connection, select

from nexus.ids import new_id
from nexus.manager.db import migrate
from nexus.manager.db.network_tables import IpAddressRow, NetworkRow
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, VmRow

pytestmark = pytest.mark.anyio

HOST, VM = new_id(), new_id()
NETWORK = {"bridge": "fcbr0", "cidr": "10.77.0.0/20", "gateway": "10.77.0.1", "dns": []}
NIC = {
    "iface": "eth0",
    "mac": "02:00:00:00:00:01",
    "ip": "10.77.0.9/20",
    "gateway": "10.77.0.1",
    "dns": [],
    "tap": "nxtap",
}
IMAGE = {"id": new_id(), "kind": "kernel", "name": "k", "sha256": "0" * 64, "size_bytes": 1}
ROOM = {
    "vcpus": 1,
    "mem_mib": 1,
    "mem_available_mib": 1,
    "disk_mib": 1,
    "disk_available_mib": 1,
    "vms": 1,
}
LAST = 0x0A4D0009


def first_version(connection: Connection) -> None:
    command.upgrade(migrate.config(connection), "0001")
    insert(connection, "hosts", id=HOST, network=NETWORK, capacity=ROOM, last_address=LAST)
    insert(
        connection,
        "vms",
        id=VM,
        name="old",
        host_id=HOST,
        nics=[NIC],
        tags={"team": "blue"},
        kernel=IMAGE,
        ssh_keys=[],
        rootfs={**IMAGE, "size_bytes": (5 << 20) + 1},
        state="running",
        power="running",
    )
    insert(connection, "ip_addresses", id=1, host_id=HOST, address=LAST, vm_id=VM)


def insert(connection: Connection, into: str, /, **values: Any) -> None:
    """A row with these values, and something of the right type where a column wants a value."""
    table = sa.Table(into, sa.MetaData(), autoload_with=connection)
    row = {
        column.name: something(column)
        for column in table.columns
        if not column.nullable and column.name not in values
    }
    as_text = connection.dialect.name == "sqlite"
    for key, value in values.items():
        is_json = isinstance(value, dict | list)
        row[key] = json.dumps(value) if is_json and as_text else value
    types = {key: sa.Text() for key in row if as_text and isinstance(row[key], str)}
    columns = [sa.column(key, types.get(key, table.c[key].type)) for key in row]
    connection.execute(sa.table(into, *columns).insert().values(row))


def something(column: sa.Column[Any]) -> Any:
    if isinstance(column.type, sa.DateTime):
        return datetime(2026, 1, 1, tzinfo=UTC)
    if isinstance(column.type, sa.Boolean):
        return False
    return 1 if isinstance(column.type, sa.Integer | sa.Float) else "qemu"


async def test_old_rows_live_on(bare_database_url: str) -> None:
    db = Database(bare_database_url)
    async with db.engine.begin() as connection:
        await connection.run_sync(first_version)
    await db.migrate()
    async with db.read() as session:
        host = await session.get_one(HostRow, HOST)
        vm = await session.get_one(VmRow, VM)
        network = (await session.scalars(select(NetworkRow))).one()
        address = (await session.scalars(select(IpAddressRow))).one()
    await db.close()
    assert (network.name, network.host_id, network.cidr) == ("default", host.id, "10.77.0.0/20")
    assert (network.state, network.last_address, network.bridge) == ("ready", LAST, "fcbr0")
    assert (address.network_id, address.address, address.vm_id) == (network.id, LAST, vm.id)
    (nic,) = vm.nics
    assert (nic.ip, nic.network_id, nic.network, nic.home) == (
        "10.77.0.9/20",
        network.id,
        "default",
        True,
    )
    assert (vm.tags, vm.drives, vm.restart_policy) == ({"team": "blue"}, [], "never")
    assert vm.disk_mib == 6
