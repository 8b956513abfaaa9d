"""``client.volumes``, sync and async."""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from nexus.api.volumes import Volume, VolumeCreate
from nexus.client.calls import volumes as calls

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client


class Volumes:
    """``client.volumes``. A volume is named by its id or its name."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(self, spec: VolumeCreate) -> Volume:
        return self._client.send(calls.create_volume(spec))

    def list(self, *, limit: int | None = None) -> Iterator[Volume]:
        return self._client.pages(lambda cursor: calls.list_volumes(limit, cursor))

    def get(self, ref: str) -> Volume:
        return self._client.send(calls.get_volume(ref))

    def delete(self, ref: str) -> None:
        """With what is on it. Refused while a VM has it."""
        self._client.send(calls.delete_volume(ref))


class AsyncVolumes:
    """``client.volumes``. A volume is named by its id or its name."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def create(self, spec: VolumeCreate) -> Volume:
        return await self._client.send(calls.create_volume(spec))

    def list(self, *, limit: int | None = None) -> AsyncIterator[Volume]:
        return self._client.pages(lambda cursor: calls.list_volumes(limit, cursor))

    async def get(self, ref: str) -> Volume:
        return await self._client.send(calls.get_volume(ref))

    async def delete(self, ref: str) -> None:
        """With what is on it. Refused while a VM has it."""
        await self._client.send(calls.delete_volume(ref))
