"""A manager on each kind of database, with an agent double behind it.

Databases are copies of one that was migrated: hundreds of tests need the tables, and few are about
how they came to be.
"""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from nexus.ids import new_id
from nexus.manager.config import Settings
from nexus.manager.db.session import Database
from tests.manager import postgres
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, running, settings_for


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    with postgres.cluster() as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres_schema(postgres_folder: Path) -> str:
    """The name of a PostgreSQL database to make others like: with all tables, and no rows."""
    name = "migrated"
    anyio.run(_migrate, postgres.make_database(postgres_folder, name))
    return name


@pytest.fixture(scope="session")
def sqlite_schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file of SQLite."""
    file = tmp_path_factory.mktemp("schema") / "nexus.db"
    anyio.run(_migrate, f"sqlite:///{file}")
    return file


async def _migrate(url: str) -> None:
    db = Database(url)
    await db.migrate()
    await db.close()


@pytest.fixture
def postgres_url(postgres_folder: Path, postgres_schema: str) -> Iterator[str]:
    """A PostgreSQL database without rows."""
    yield from _of_postgres(postgres_folder, postgres_schema)


def _of_postgres(folder: Path, like: str | None) -> Iterator[str]:
    name = "t" + new_id().replace("-", "")
    yield postgres.make_database(folder, name, like)
    postgres.drop_database(folder, name)


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_schema: Path) -> str:
    """A SQLite database without rows."""
    file = tmp_path / "nexus.db"
    shutil.copy(sqlite_schema, file)
    return f"sqlite:///{file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A database without rows, of each kind."""
    url: str = request.getfixturevalue(
        "sqlite_url" if request.param == "sqlite" else "postgres_url"
    )
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables, of each kind: for what is about migrations."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'nexus.db'}"
        return
    yield from _of_postgres(request.getfixturevalue("postgres_folder"), None)


@pytest.fixture
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AgentDouble]:
    async with AgentDouble(tmp_path_factory.mktemp("a") / "agent.sock").serving() as double:
        yield double


@pytest.fixture
def settings(tmp_path: Path, database_url: str, agent: AgentDouble) -> Settings:
    return settings_for(tmp_path, database_url, agent.url)


@pytest.fixture
async def manager(settings: Settings) -> AsyncIterator[Manager]:
    """A ready manager with the default images."""
    async with running(settings) as made:
        await made.add_defaults()
        yield made


@pytest.fixture
async def sqlite_manager(
    tmp_path: Path, sqlite_url: str, agent: AgentDouble
) -> AsyncIterator[Manager]:
    """A ready manager for what does not depend on the database."""
    async with running(settings_for(tmp_path, sqlite_url, agent.url)) as made:
        yield made
