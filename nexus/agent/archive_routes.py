"""The agent's routes that send snapshots and take them in."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Path
from starlette.requests import HTTPConnection

from nexus import streams
from nexus.agent import snapshot_archive
from nexus.agent.fleet import Fleet
from nexus.api.common import Uuid
from nexus.api.errors import NexusError
from nexus.api.snapshots import HostSnapshot

MOST_BYTES = 1 << 50
"""What there is room for is the disk's say."""
SnapshotId = Annotated[Uuid, Path()]
Body = Annotated[AsyncIterator[bytes], Depends(streams.upload(MOST_BYTES))]
FleetOf = Callable[[HTTPConnection], Fleet]


def add(app: FastAPI, fleet_of: FleetOf) -> None:
    """Adds the routes to an agent's application."""

    @app.get("/agent/v1/snapshots/{snapshot_id}/archive")
    async def send(connection: HTTPConnection, snapshot_id: SnapshotId) -> streams.Download:
        going = await snapshot_archive.outgoing(fleet_of(connection).shelf, snapshot_id)
        headers = {"content-length": str(going.size_bytes)}
        return streams.Download(going.content, going.close, headers)

    @app.put("/agent/v1/snapshots/{snapshot_id}/archive")
    async def take_in(
        connection: HTTPConnection, snapshot_id: SnapshotId, body: Body
    ) -> HostSnapshot:
        try:
            shelf = fleet_of(connection).shelf
            return await snapshot_archive.incoming(shelf, snapshot_id, body)
        except NexusError:
            await streams.drain(body)
            raise
