"""The SDK: typed access to a Nexus manager, sync (`Client`) and async (`AsyncClient`)."""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient

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


def __getattr__(name: str) -> Any:
    """The async half, which no command needs, when somebody asks for it."""
    if name != "AsyncClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nexus.client.async_client import AsyncClient

    return AsyncClient
