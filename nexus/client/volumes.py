"""``client.volumes``, sync and async."""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from nexus.api.volumes import Volume, VolumeAttach, VolumeChange, VolumeCreate, VolumeDetach
from nexus.client.calls import volumes as calls

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client


class Volumes:
    """``client.volumes``. A volume is named by its id or its name.

    With ``wait``, changes return once the host of the volume's VM has done them.
    """

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(self, spec: VolumeCreate) -> Volume:
        return self._client.send(calls.create_volume(spec))

    def list(self, *, limit: int | None = None) -> Iterator[Volume]:
        return self._client.pages(lambda cursor: calls.list_volumes(limit, cursor))

    def get(self, ref: str) -> Volume:
        return self._client.send(calls.get_volume(ref))

    def update(
        self,
        ref: str,
        *,
        name: str | None = None,
        size_mib: int | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Volume:
        """Renames it, or makes it larger, also while a guest runs with it."""
        change = _change(name, size_mib)
        return self._client.send(calls.update_volume(ref, change, wait, timeout_s))

    def attach(
        self,
        ref: str,
        vm: str,
        *,
        name: str | None = None,
        read_only: bool = False,
        restart: bool = False,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Volume:
        """Gives it to a VM that does not run; ``restart`` reboots one that does."""
        wanted = VolumeAttach(vm=vm, name=name, read_only=read_only, restart=restart)
        return self._client.send(calls.attach_volume(ref, wanted, wait, timeout_s))

    def detach(
        self,
        ref: str,
        *,
        restart: bool = False,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Volume:
        """Takes it from a VM that does not run; ``restart`` reboots one that does."""
        wanted = VolumeDetach(restart=restart)
        return self._client.send(calls.detach_volume(ref, wanted, wait, timeout_s))

    def snapshot(self, ref: str, name: str) -> Volume:
        """A new volume that begins as this one is. Refused while a VM runs with it."""
        return self._client.send(calls.snapshot_volume(ref, name))

    def delete(self, ref: str) -> None:
        """With what is on it. Refused while a VM has it."""
        self._client.send(calls.delete_volume(ref))


class AsyncVolumes:
    """``client.volumes``. A volume is named by its id or its name.

    With ``wait``, changes return once the host of the volume's VM has done them.
    """

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def create(self, spec: VolumeCreate) -> Volume:
        return await self._client.send(calls.create_volume(spec))

    def list(self, *, limit: int | None = None) -> AsyncIterator[Volume]:
        return self._client.pages(lambda cursor: calls.list_volumes(limit, cursor))

    async def get(self, ref: str) -> Volume:
        return await self._client.send(calls.get_volume(ref))

    async def update(
        self,
        ref: str,
        *,
        name: str | None = None,
        size_mib: int | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Volume:
        """Renames it, or makes it larger, also while a guest runs with it."""
        change = _change(name, size_mib)
        return await self._client.send(calls.update_volume(ref, change, wait, timeout_s))

    async def attach(
        self,
        ref: str,
        vm: str,
        *,
        name: str | None = None,
        read_only: bool = False,
        restart: bool = False,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Volume:
        """Gives it to a VM that does not run; ``restart`` reboots one that does."""
        wanted = VolumeAttach(vm=vm, name=name, read_only=read_only, restart=restart)
        return await self._client.send(calls.attach_volume(ref, wanted, wait, timeout_s))

    async def detach(
        self,
        ref: str,
        *,
        restart: bool = False,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Volume:
        """Takes it from a VM that does not run; ``restart`` reboots one that does."""
        wanted = VolumeDetach(restart=restart)
        return await self._client.send(calls.detach_volume(ref, wanted, wait, timeout_s))

    async def snapshot(self, ref: str, name: str) -> Volume:
        """A new volume that begins as this one is. Refused while a VM runs with it."""
        return await self._client.send(calls.snapshot_volume(ref, name))

    async def delete(self, ref: str) -> None:
        """With what is on it. Refused while a VM has it."""
        await self._client.send(calls.delete_volume(ref))


def _change(name: str | None, size_mib: int | None) -> VolumeChange:
    given = {"name": name, "size_mib": size_mib}
    return VolumeChange.model_validate({k: v for k, v in given.items() if v is not None})
