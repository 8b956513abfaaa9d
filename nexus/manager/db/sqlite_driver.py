"""SQLite for the manager: aiosqlite, whose thread is visited only for what may take its time.

SQLAlchemy's own adapter goes to that thread four times for each statement: for a cursor, for the
statement, for its rows and to close the cursor. Each time two threads take turns, which costs more
than a look-up by a key does. Here a statement goes there once; and where ``AT_ONCE`` is wanted it
runs where it is asked for, in the event loop, and only what waits goes to the thread: for the disk
(``COMMIT``), and for the write lock (``BEGIN IMMEDIATE``) when another program has it.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite import aiosqlite as stock
from sqlalchemy.util.concurrency import await_

DRIVER = "sqlite+nexus"
"""The drivername of a URL that wants this."""
AT_ONCE = "nexus_at_once"
"""The execution option of an engine whose statements are short."""
BEGIN_WRITING = "BEGIN IMMEDIATE"
PATIENCE = "PRAGMA busy_timeout = 30000"
"""How long a statement waits for other programs, in milliseconds."""


@dataclass(frozen=True, slots=True)
class _Done:
    """What a statement left behind when its cursor was closed."""

    description: Any = None
    rowcount: int = -1
    lastrowid: int | None = None
    rows: Sequence[Any] = ()


class _Cursor(stock.AsyncAdapt_aiosqlite_cursor):
    """Runs a statement to its end and reads all its rows in one go."""

    __slots__ = ()
    _adapt_connection: "_Connection"
    _cursor: Any

    def __init__(self, adapt_connection: "_Connection") -> None:
        # Without the stock one's, which makes an aiosqlite cursor.
        self._adapt_connection = adapt_connection
        self._connection = adapt_connection._connection
        self._cursor = _Done()
        self._soft_closed_memoized = {}  # type: ignore[assignment]
        self._rows = deque()

    def execute(self, operation: Any, parameters: Any = None) -> None:
        self._run(sqlite3.Cursor.execute, operation, () if parameters is None else parameters)

    def executemany(self, operation: Any, seq_of_parameters: Any) -> None:
        self._run(sqlite3.Cursor.executemany, operation, seq_of_parameters)

    def _run(self, act: Callable[..., Any], operation: str, parameters: Any) -> None:
        try:
            given = self._connection._conn, act, operation, parameters
            if not self._adapt_connection.at_once:
                self._cursor = await_(self._connection._execute(_run, *given))
            elif operation != BEGIN_WRITING:
                self._cursor = _run(*given)
            elif not _begins_at_once(given[0]):
                self._cursor = await_(self._connection._execute(_run, *given))
        except (sqlite3.Error, ValueError) as error:
            self._adapt_connection._handle_exception(error)
        self._rows = deque(self._cursor.rows)

    async def _async_soft_close(self) -> None:
        """The cursor is closed, and its rows are here."""

    def close(self) -> None:
        self._rows.clear()


def _run(
    connection: sqlite3.Connection, act: Callable[..., Any], operation: str, parameters: Any
) -> _Done:
    cursor = connection.cursor()
    try:
        act(cursor, operation, parameters)
        rows = cursor.fetchall() if cursor.description else ()
        return _Done(cursor.description, cursor.rowcount, cursor.lastrowid, rows)
    finally:
        cursor.close()


def _begins_at_once(connection: sqlite3.Connection) -> bool:
    """Begins to write if nobody else does; False when it would have to wait for that."""
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        connection.execute(BEGIN_WRITING)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    finally:
        connection.execute(PATIENCE)
    return True


class _Connection(stock.AsyncAdapt_aiosqlite_connection):
    __slots__ = ("at_once",)
    _cursor_cls = _Cursor  # type: ignore[assignment]

    def __init__(self, dbapi: Any, connection: Any) -> None:
        super().__init__(dbapi, connection)
        self.at_once = False

    def rollback(self) -> None:
        """Waits for nothing: what is rolled back was never written to the disk."""
        if self._connection._connection:
            try:
                self._connection._conn.rollback()
            except (sqlite3.Error, ValueError) as error:
                self._handle_exception(error)


class _Dbapi(stock.AsyncAdapt_aiosqlite_dbapi):
    def connect(self, *arg: Any, **kw: Any) -> _Connection:
        # One thread at a time all the same: SQLAlchemy awaits each visit to the other one.
        made = super().connect(*arg, **{**kw, "check_same_thread": False})
        return _Connection(self, made._connection)


class NexusDialect(stock.SQLiteDialect_aiosqlite):
    """SQLAlchemy's dialect for aiosqlite, with the connection above."""

    driver = "nexus"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> _Dbapi:
        return _Dbapi(__import__("aiosqlite"), sqlite3)


registry.register("sqlite.nexus", __name__, NexusDialect.__name__)


def begin(connection: Connection, *, writing: bool) -> None:
    """Begins a transaction as the connection's execution options say."""
    raw: Any = connection.connection.dbapi_connection
    if isinstance(raw, _Connection):
        raw.at_once = connection.get_execution_options().get(AT_ONCE, False)
    connection.exec_driver_sql(BEGIN_WRITING if writing else "BEGIN")
