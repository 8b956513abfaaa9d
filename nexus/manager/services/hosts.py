"""Hosts: what they said of themselves, and whether they are well."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from nexus.api.errors import NotFound
from nexus.api.hosts import Host
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow

FRESH_S = 15.0
"""A host not heard of for this long is not healthy, whatever its row says."""


def is_healthy(row: HostRow, now: datetime) -> bool:
    """Whether new VMs may go there."""
    return row.state == "healthy" and row.last_seen_at > now - timedelta(seconds=FRESH_S)


def to_host(row: HostRow, now: datetime) -> Host:
    """A row as the API shows it."""
    return Host(
        id=row.id,
        name=row.name,
        state="healthy" if is_healthy(row, now) else "unreachable",
        engine=row.engine,
        engine_reason=row.engine_reason,
        engine_version=row.engine_version,
        network=row.network,
        capacity=row.capacity,
        run_dir=row.run_dir,
        agent_version=row.agent_version,
        last_seen_at=row.last_seen_at,
        created_at=row.created_at,
    )


class HostService:
    """Reading hosts; only the hosts' pipeline changes them."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def page(self, *, cursor: str | None, limit: int) -> tuple[list[Host], str | None]:
        """Hosts in the order of their ids, and the next cursor."""
        query = select(HostRow).order_by(HostRow.id).limit(limit + 1)
        if cursor is not None:
            query = query.where(HostRow.id > cursor)
        async with self.db.read() as session:
            rows = (await session.scalars(query)).all()
        now = datetime.now(UTC)
        more = len(rows) > limit
        return [to_host(row, now) for row in rows[:limit]], rows[limit - 1].id if more else None

    async def get(self, host_id: str) -> Host:
        """A host by its id. Raises NotFound."""
        async with self.db.read() as session:
            row = await session.get(HostRow, host_id)
        if row is None:
            raise NotFound(f"there is no host {host_id!r}", suggestion="nexus host ls")
        return to_host(row, datetime.now(UTC))

    async def any_healthy(self) -> bool:
        """Whether at least one host is well. Raises when the database does not answer."""
        now = datetime.now(UTC)
        async with self.db.read() as session:
            rows = (await session.scalars(select(HostRow))).all()
        return any(is_healthy(row, now) for row in rows)
