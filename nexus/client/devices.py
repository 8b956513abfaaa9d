"""Changing drives, NICs and balloons: parts of ``client.vms``, sync and async."""

from typing import TYPE_CHECKING

from nexus.api.devices import BalloonChange, DriveChange, NicChange
from nexus.api.vms import Vm
from nexus.client.calls import devices as calls

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client


class DeviceChanges:
    """With ``wait``, each returns once a VM that runs has it, and raises what its VMM refused;
    a VM that does not run has it at its next boot."""

    _client: "Client"

    def change_drive(
        self,
        ref: str,
        name: str,
        change: DriveChange,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Vm:
        """Other limits, or a larger size. The root disk is called ``rootfs``."""
        return self._client.send(calls.change_drive(ref, name, change, wait, timeout_s))

    def change_nic(
        self,
        ref: str,
        iface: str,
        change: NicChange,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Vm:
        """Other limits for ``eth0`` or another NIC."""
        return self._client.send(calls.change_nic(ref, iface, change, wait, timeout_s))

    def set_balloon(
        self, ref: str, target_mib: int, *, wait: bool = True, timeout_s: float | None = None
    ) -> Vm:
        """How much of its memory the guest is to give back."""
        change = BalloonChange(target_mib=target_mib)
        return self._client.send(calls.change_balloon(ref, change, wait, timeout_s))


class AsyncDeviceChanges:
    """With ``wait``, each returns once a VM that runs has it, and raises what its VMM refused;
    a VM that does not run has it at its next boot."""

    _client: "AsyncClient"

    async def change_drive(
        self,
        ref: str,
        name: str,
        change: DriveChange,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Vm:
        """Other limits, or a larger size. The root disk is called ``rootfs``."""
        return await self._client.send(calls.change_drive(ref, name, change, wait, timeout_s))

    async def change_nic(
        self,
        ref: str,
        iface: str,
        change: NicChange,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Vm:
        """Other limits for ``eth0`` or another NIC."""
        return await self._client.send(calls.change_nic(ref, iface, change, wait, timeout_s))

    async def set_balloon(
        self, ref: str, target_mib: int, *, wait: bool = True, timeout_s: float | None = None
    ) -> Vm:
        """How much of its memory the guest is to give back."""
        change = BalloonChange(target_mib=target_mib)
        return await self._client.send(calls.change_balloon(ref, change, wait, timeout_s))
