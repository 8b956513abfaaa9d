"""``client.networks`` and ``client.forwards``, sync and async."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

from nexus.api.doctor import NetworkDoctor
from nexus.api.networks import (
    Network,
    NetworkChange,
    NetworkCreate,
    NetworkMember,
    PortForward,
    PortForwardCreate,
)
from nexus.client.calls import networks as calls

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client


class Networks:
    """``client.networks``. A network is named by its id or its name."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(
        self, spec: NetworkCreate, *, wait: bool = True, timeout_s: float | None = None
    ) -> Network:
        """Makes a network. With ``wait``, returns when it is ``ready`` or in ``error``."""
        return self._client.send(calls.create_network(spec, wait, timeout_s))

    def change(
        self, ref: str, change: NetworkChange, *, wait: bool = True, timeout_s: float | None = None
    ) -> Network:
        return self._client.send(calls.change_network(ref, change, wait, timeout_s))

    def list(self, *, limit: int | None = None) -> Iterator[Network]:
        return self._client.pages(lambda cursor: calls.list_networks(limit, cursor))

    def get(self, ref: str) -> Network:
        return self._client.send(calls.get_network(ref))

    def delete(self, ref: str) -> None:
        """Refused while VMs are on it."""
        self._client.send(calls.delete_network(ref))

    def members(self, ref: str) -> Sequence[NetworkMember]:
        """Which VMs are on it, with which addresses."""
        return self._client.send(calls.network_members(ref)).items

    def doctor(self, vm: str) -> NetworkDoctor:
        """What stands between a VM and its networks."""
        return self._client.send(calls.network_doctor(vm))


class Forwards:
    """``client.forwards``: ports of hosts that lead to VMs."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(self, vm: str, spec: PortForwardCreate) -> PortForward:
        return self._client.send(calls.create_forward(vm, spec))

    def list(self, vm: str) -> Sequence[PortForward]:
        return self._client.send(calls.list_forwards(vm)).items

    def delete(self, vm: str, forward_id: str) -> None:
        self._client.send(calls.delete_forward(vm, forward_id))


class AsyncNetworks:
    """``client.networks``. A network is named by its id or its name."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def create(
        self, spec: NetworkCreate, *, wait: bool = True, timeout_s: float | None = None
    ) -> Network:
        """Makes a network. With ``wait``, returns when it is ``ready`` or in ``error``."""
        return await self._client.send(calls.create_network(spec, wait, timeout_s))

    async def change(
        self, ref: str, change: NetworkChange, *, wait: bool = True, timeout_s: float | None = None
    ) -> Network:
        return await self._client.send(calls.change_network(ref, change, wait, timeout_s))

    def list(self, *, limit: int | None = None) -> AsyncIterator[Network]:
        return self._client.pages(lambda cursor: calls.list_networks(limit, cursor))

    async def get(self, ref: str) -> Network:
        return await self._client.send(calls.get_network(ref))

    async def delete(self, ref: str) -> None:
        """Refused while VMs are on it."""
        await self._client.send(calls.delete_network(ref))

    async def members(self, ref: str) -> Sequence[NetworkMember]:
        """Which VMs are on it, with which addresses."""
        return (await self._client.send(calls.network_members(ref))).items

    async def doctor(self, vm: str) -> NetworkDoctor:
        """What stands between a VM and its networks."""
        return await self._client.send(calls.network_doctor(vm))


class AsyncForwards:
    """``client.forwards``: ports of hosts that lead to VMs."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def create(self, vm: str, spec: PortForwardCreate) -> PortForward:
        return await self._client.send(calls.create_forward(vm, spec))

    async def list(self, vm: str) -> Sequence[PortForward]:
        return (await self._client.send(calls.list_forwards(vm))).items

    async def delete(self, vm: str, forward_id: str) -> None:
        await self._client.send(calls.delete_forward(vm, forward_id))
