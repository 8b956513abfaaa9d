"""The agent's routes of snapshots."""

from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Path
from starlette.requests import HTTPConnection

from nexus.agent.fleet import Fleet
from nexus.api.common import Ok, Page, Uuid
from nexus.api.errors import BadRequest
from nexus.api.snapshots import HostSnapshot, SnapshotOrder

SnapshotId = Annotated[Uuid, Path()]
FleetOf = Callable[[HTTPConnection], Fleet]


def add(app: FastAPI, fleet_of: FleetOf) -> None:
    """Adds the routes to an agent's application."""

    @app.get("/agent/v1/snapshots")
    async def list_snapshots(connection: HTTPConnection) -> Page[HostSnapshot]:
        return Page(items=fleet_of(connection).shelf.all())

    @app.get("/agent/v1/snapshots/{snapshot_id}")
    async def get_snapshot(connection: HTTPConnection, snapshot_id: SnapshotId) -> HostSnapshot:
        return fleet_of(connection).shelf.get(snapshot_id)

    @app.put("/agent/v1/snapshots/{snapshot_id}")
    async def put_snapshot(
        connection: HTTPConnection, snapshot_id: SnapshotId, order: SnapshotOrder
    ) -> HostSnapshot:
        if order.id != snapshot_id:
            raise BadRequest("the id in the path and the id in the body differ")
        return await fleet_of(connection).capture(order)

    @app.delete("/agent/v1/snapshots/{snapshot_id}")
    async def delete_snapshot(connection: HTTPConnection, snapshot_id: SnapshotId) -> Ok:
        await fleet_of(connection).shelf.delete(snapshot_id)
        return Ok()
