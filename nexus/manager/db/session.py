"""Connections and transactions, the same for SQLite and PostgreSQL.

A writing transaction on SQLite begins with ``BEGIN IMMEDIATE`` and queues in this process for the
one write lock there is, so that it never fails half-way because another one was first.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.util.concurrency import await_

from nexus.manager.db import migrate, sqlite_driver

_DRIVERS = {
    "sqlite": sqlite_driver.DRIVER,
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}
_WRITES = "nexus_writes"
WAL_S = 10.0
WAL_AGAIN_S = 0.002


class Database:
    """One database; makes no connection before it is used."""

    def __init__(self, url: str) -> None:
        self.url = _with_driver(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"pool_size": 8, "max_overflow": 8}
        if self.is_sqlite:
            options["connect_args"] = {"timeout": 30, "isolation_level": None}
        else:
            options["pool_pre_ping"] = True
            options["connect_args"] = {"timeout": 10, "command_timeout": 30}
        self.engine = create_async_engine(self.url, **options)
        if self.is_sqlite:
            event.listen(self.engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite)
        reading = self.engine.execution_options(**{sqlite_driver.AT_ONCE: True})
        still = reading
        if not self.is_sqlite:
            still = reading.execution_options(isolation_level="REPEATABLE READ")
        writing = reading.execution_options(**{_WRITES: True})
        self._read = async_sessionmaker(reading, expire_on_commit=False, autoflush=False)
        self._read_still = async_sessionmaker(still, expire_on_commit=False, autoflush=False)
        self._scan = async_sessionmaker(self.engine, expire_on_commit=False, autoflush=False)
        self._write = async_sessionmaker(writing, expire_on_commit=False)
        self._turn = anyio.Lock()
        self.on_commit: list[Callable[[], None]] = []
        """Called after each writing transaction of this process: hints that there may be news."""

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session for reading; nothing it does is kept. Cancellation waits for its end."""
        with anyio.CancelScope(shield=True):
            async with self._read() as session:
                yield session

    @contextlib.asynccontextmanager
    async def read_still(self) -> AsyncIterator[AsyncSession]:
        """The same with all its queries at one moment, which only SQLite's of ``read`` are: what
        moves from one table to another meanwhile is in one of them."""
        with anyio.CancelScope(shield=True):
            async with self._read_still() as session:
                yield session

    @contextlib.asynccontextmanager
    async def scan(self) -> AsyncIterator[AsyncSession]:
        """The same for queries that may look at many rows to find a few. SQLite runs those of
        ``read`` in the event loop, which is quicker and must not take long."""
        with anyio.CancelScope(shield=True):
            async with self._scan() as session:
                yield session

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction: committed when the block ends, rolled back when it raises.

        Await nothing but the database inside: cancellation waits for the transaction's end,
        because drivers do not take being cut off in the middle of a statement well.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(anyio.CancelScope(shield=True))
            if self.is_sqlite:
                await stack.enter_async_context(self._turn)
            session = await stack.enter_async_context(self._write())
            await stack.enter_async_context(session.begin())
            yield session
        for hint in self.on_commit:
            hint()

    async def migrate(self) -> None:
        """Brings the schema up to date; several managers may do so at once."""
        if self.is_sqlite and self.url.database:
            file = Path(self.url.database)
            file.parent.mkdir(parents=True, exist_ok=True)
            # User data may hold secrets. SQLite gives its log and index the same mode.
            file.touch(mode=0o600)
        async with self._write() as session, session.begin():
            if not self.is_sqlite:
                await session.execute(text(f"SELECT pg_advisory_xact_lock({migrate.LOCK})"))
            connection = await session.connection()
            await connection.run_sync(migrate.upgrade)

    async def ping(self) -> None:
        """Raises when the database does not answer."""
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()


def _with_driver(url: str) -> URL:
    parsed = make_url(url)
    backend = parsed.drivername.partition("+")[0]
    if backend not in _DRIVERS:
        raise ValueError(f"DATABASE_URL: {backend!r} is not supported; use sqlite or postgresql")
    return parsed.set(drivername=_DRIVERS[backend])


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    _use_wal(cursor)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "cache_size=-8192"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.execute(sqlite_driver.PATIENCE)
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """Of two that change a new file's journal at once SQLite refuses one, however patient it is:
    each could be waiting for the other."""
    deadline = time.monotonic() + WAL_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            await_(asyncio.sleep(WAL_AGAIN_S))
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get(_WRITES, False)
    sqlite_driver.begin(connection, writing=writing)
