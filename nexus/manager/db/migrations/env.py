"""Alembic's entry: migrates the connection that ``nexus.manager.db.migrate`` hands over."""

from alembic import context

from nexus.manager.db.base import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
