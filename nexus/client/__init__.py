"""The SDK: typed access to a Nexus manager, sync (`Client`) and async (`AsyncClient`)."""

from nexus.client.async_client import AsyncClient
from nexus.client.connect import Connection, find_connection
from nexus.client.errors import (
    ChangedError,
    ConflictError,
    DeniedError,
    EventsLost,
    NexusApiError,
    NotFoundError,
    NotReachable,
    WaitTimedOut,
)
from nexus.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "ChangedError",
    "Client",
    "ConflictError",
    "Connection",
    "DeniedError",
    "EventsLost",
    "NexusApiError",
    "NotFoundError",
    "NotReachable",
    "WaitTimedOut",
    "find_connection",
]
