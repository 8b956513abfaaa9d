"""``client.hosts``, sync and async."""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from nexus.api.hosts import Host
from nexus.client.calls import hosts as calls

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client


class Hosts:
    """``client.hosts``."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def list(self, *, limit: int | None = None) -> Iterator[Host]:
        return self._client.pages(lambda cursor: calls.list_hosts(limit, cursor))

    def get(self, host_id: str) -> Host:
        return self._client.send(calls.get_host(host_id))


class AsyncHosts:
    """``client.hosts``."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    def list(self, *, limit: int | None = None) -> AsyncIterator[Host]:
        return self._client.pages(lambda cursor: calls.list_hosts(limit, cursor))

    async def get(self, host_id: str) -> Host:
        return await self._client.send(calls.get_host(host_id))
