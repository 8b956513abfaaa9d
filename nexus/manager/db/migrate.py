"""Schema migrations, run by Alembic from inside the installed package."""

import functools
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

SCRIPTS = Path(__file__).parent / "migrations"
LOCK = 7361990237
"""The PostgreSQL advisory lock under which one manager at a time migrates."""


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without a file; ``env.py`` takes the connection from it."""
    made = Config()
    made.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection) -> None:
    """Applies what is missing, inside the connection's transaction."""
    if MigrationContext.configure(connection).get_current_revision() != _head():
        command.upgrade(config(connection), "head")


@functools.cache
def _head() -> str | None:
    """The newest revision; to find it, all scripts are read."""
    return ScriptDirectory.from_config(config()).get_current_head()
