"""A manager on each kind of database, with an agent double behind it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nexus.ids import new_id
from nexus.manager.config import Settings
from tests.manager import postgres
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, running, settings_for


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    with postgres.cluster() as folder:
        yield folder


@pytest.fixture
def postgres_url(postgres_folder: Path) -> Iterator[str]:
    """An empty PostgreSQL database."""
    name = "t" + new_id().replace("-", "")
    yield postgres.make_database(postgres_folder, name)
    postgres.drop_database(postgres_folder, name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'nexus.db'}"
        return
    folder: Path = request.getfixturevalue("postgres_folder")
    name = "t" + new_id().replace("-", "")
    yield postgres.make_database(folder, name)
    postgres.drop_database(folder, name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'nexus.db'}"


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
