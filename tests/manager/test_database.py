"""Schema and transactions, on both databases."""

import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import anyio
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import OperationalError

from nexus.api.errors import Conflict
from nexus.manager import uow
from nexus.manager.config import BadSetting, Settings
from nexus.manager.db.base import Base
from nexus.manager.db.journal_tables import AuditRow, VmEventRow
from nexus.manager.db.session import Database
from tests.manager.rows import host_row, image_row, vm_row

pytestmark = pytest.mark.anyio

VM = vm_row("vm", host_row(), image_row("kernel"))


async def test_migrations_make_what_the_tables_say(bare_database_url: str) -> None:
    db = Database(bare_database_url)
    await db.migrate()
    await db.migrate()

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

    async with db.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await db.close()


async def test_managers_may_migrate_at_once(bare_database_url: str) -> None:
    databases = [Database(bare_database_url) for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for db in databases:
            tasks.start_soon(db.migrate)
    for db in databases:
        await db.ping()
        await db.close()


async def test_a_new_file_takes_several_at_once(tmp_path: Path) -> None:
    """Each connection has a thread of its own, and SQLite refuses one of two that do it at once."""
    refused: list[OperationalError] = []

    async def use(url: str) -> None:
        db = Database(url)
        try:
            await db.ping()
        except OperationalError as error:
            refused.append(error)
        await db.close()

    for number in range(100):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(use, f"sqlite:///{tmp_path / str(number)}.db")
    assert refused == []


async def test_a_refused_change_leaves_only_its_audit_row(database_url: str) -> None:
    db = Database(database_url)
    await db.migrate()

    async def refused() -> None:
        async with uow.change(db, uow.SYSTEM, "test.change", target="x") as unit:
            unit.event(VM, "running", "never", "never")
            await unit.session.flush()
            raise Conflict("no")

    with pytest.raises(Conflict):
        await refused()
    async with db.read() as session:
        assert await session.scalar(select(func.count(VmEventRow.id))) == 0
        row = (await session.scalars(select(AuditRow))).one()
    assert (row.action, row.target, row.result, row.actor) == (
        "test.change",
        "x",
        "conflict",
        "system",
    )
    await db.close()


async def test_many_writers_at_once(database_url: str) -> None:
    db = Database(database_url)
    await db.migrate()

    async def write() -> None:
        for _ in range(5):
            async with uow.change(db, uow.SYSTEM, "test.write") as unit:
                unit.event(VM, "running", "r", "m")

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(write)
    async with db.read() as session:
        ids = (await session.scalars(select(VmEventRow.id).order_by(VmEventRow.id))).all()
    assert len(ids) == len(set(ids)) == 100
    await db.close()


async def test_another_program_that_writes_to_sqlite_keeps_nobody_from_reading(
    tmp_path: Path,
) -> None:
    db = Database(f"sqlite:///{tmp_path}/nexus.db")
    await db.migrate()
    other = sqlite3.connect(tmp_path / "nexus.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    written = anyio.Event()

    async def write() -> None:
        async with uow.change(db, uow.SYSTEM, "test.write"):
            pass
        written.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        for session_of in (db.read, db.scan, db.read):
            async with session_of() as session:
                assert await session.scalar(select(func.count(AuditRow.id))) == 0
        assert not written.is_set()
        other.execute("ROLLBACK")
        await written.wait()
    async with db.read() as session:
        assert await session.scalar(select(func.count(AuditRow.id))) == 1
    other.close()
    await db.close()


async def test_times_come_back_as_utc(database_url: str) -> None:
    db = Database(database_url)
    await db.migrate()
    elsewhere = timezone(timedelta(hours=5))
    at = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=elsewhere)
    async with db.write() as session:
        session.add(uow.vm_event(uow.SYSTEM, VM, at, "running", "r", "m"))
    async with db.read() as session:
        row = (await session.scalars(select(VmEventRow))).one()
    assert row.at == at
    assert row.at.tzinfo is UTC
    await db.close()


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_env({"NEXUS_DATA_DIR": "/d", "MANAGER_ALLOW_IMAGE_PATHS": "1"})
    assert settings.database_url == "sqlite:////d/nexus.db"
    assert str(settings.store_dir) == "/d/store"
    assert settings.allow_image_paths
    assert not settings.reconciler_disabled
    with pytest.raises(BadSetting, match="MANAGER_RECONCILER_DISABLED"):
        Settings.from_env({"MANAGER_RECONCILER_DISABLED": "maybe"})
    with pytest.raises(BadSetting):
        Settings.from_env({"MANAGER_MEM_OVERCOMMIT": "-1"})
    with pytest.raises(BadSetting, match="NEXUS_AGENT_URL"):
        Settings.from_env({"NEXUS_AGENT_URL": "http://127.0.0.1:99999"})
    for address in ("s3cret", "postgresql://u:s3cret@h:many/d"):
        with pytest.raises(BadSetting, match="DATABASE_URL") as bad:
            Settings.from_env({"DATABASE_URL": address})
        assert "s3cret" not in str(bad.value)
