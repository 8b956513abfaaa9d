"""``client.vms``, sync and async."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING

from nexus.api.vms import LogChunk, LogSource, Vm, VmCreate, VmEvent, VmState, WaitState
from nexus.api.why import VmWhy
from nexus.client.calls import vms as calls
from nexus.client.devices import AsyncDeviceChanges, DeviceChanges
from nexus.client.guests import AsyncGuestCalls, GuestCalls

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.console import AsyncConsole, Console
    from nexus.client.sync_client import Client


class Vms(DeviceChanges, GuestCalls):
    """``client.vms``. A VM is named by its id or its name."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(
        self, spec: VmCreate, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> Vm:
        """Makes a VM. With ``wait``, returns when it is so or in ``error``."""
        return self._client.send(calls.create_vm(spec, wait, timeout_s))

    def list(
        self, *, state: VmState | None = None, name: str | None = None, limit: int | None = None
    ) -> Iterator[Vm]:
        """All VMs, oldest first; ``limit`` is the size of a page."""
        return self._client.pages(lambda cursor: calls.list_vms(state, name, limit, cursor))

    def get(self, ref: str) -> Vm:
        return self._client.send(calls.get_vm(ref))

    def start(
        self, ref: str, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> None:
        self._client.send(calls.act_on_vm(ref, "start", wait, timeout_s))

    def stop(
        self,
        ref: str,
        *,
        force: bool = False,
        grace_s: float | None = None,
        wait: WaitState | None = None,
    ) -> None:
        """Asks the guest to power off; kills it after ``grace_s`` seconds, or at once."""
        self._client.send(calls.stop_vm(ref, force, grace_s, wait))

    def pause(
        self, ref: str, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> None:
        self._client.send(calls.act_on_vm(ref, "pause", wait, timeout_s))

    def resume(
        self, ref: str, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> None:
        self._client.send(calls.act_on_vm(ref, "resume", wait, timeout_s))

    def delete(self, ref: str, *, wait: bool = True, timeout_s: float | None = None) -> None:
        """Deletes a VM in whatever state it is."""
        self._client.send(calls.delete_vm(ref, wait, timeout_s))

    def logs(self, ref: str, *, source: LogSource = "console", tail: int = 100) -> LogChunk:
        return self._client.send(calls.vm_logs(ref, source, tail))

    def follow_logs(
        self, ref: str, *, source: LogSource = "console", tail: int = 100
    ) -> Iterator[bytes]:
        """The last ``tail`` lines, then what is written, as it is written."""
        return self._client.stream(calls.follow_vm_logs(ref, source, tail))

    def console(self, ref: str) -> AbstractContextManager["Console"]:
        """``with client.vms.console(ref) as console``: the serial console, both ways."""
        return self._client.console(ref)

    def why(self, ref: str) -> VmWhy:
        """Why it is as it is, and what to do; also for one that was deleted lately."""
        return self._client.send(calls.vm_why(ref))

    def events(self, ref: str, *, limit: int | None = None) -> Iterator[VmEvent]:
        return self._client.pages(lambda cursor: calls.vm_events(ref, limit, cursor))


class AsyncVms(AsyncDeviceChanges, AsyncGuestCalls):
    """``client.vms``. A VM is named by its id or its name."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def create(
        self, spec: VmCreate, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> Vm:
        """Makes a VM. With ``wait``, returns when it is so or in ``error``."""
        return await self._client.send(calls.create_vm(spec, wait, timeout_s))

    def list(
        self, *, state: VmState | None = None, name: str | None = None, limit: int | None = None
    ) -> AsyncIterator[Vm]:
        """All VMs, oldest first; ``limit`` is the size of a page."""
        return self._client.pages(lambda cursor: calls.list_vms(state, name, limit, cursor))

    async def get(self, ref: str) -> Vm:
        return await self._client.send(calls.get_vm(ref))

    async def start(
        self, ref: str, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> None:
        await self._client.send(calls.act_on_vm(ref, "start", wait, timeout_s))

    async def stop(
        self,
        ref: str,
        *,
        force: bool = False,
        grace_s: float | None = None,
        wait: WaitState | None = None,
    ) -> None:
        """Asks the guest to power off; kills it after ``grace_s`` seconds, or at once."""
        await self._client.send(calls.stop_vm(ref, force, grace_s, wait))

    async def pause(
        self, ref: str, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> None:
        await self._client.send(calls.act_on_vm(ref, "pause", wait, timeout_s))

    async def resume(
        self, ref: str, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> None:
        await self._client.send(calls.act_on_vm(ref, "resume", wait, timeout_s))

    async def delete(self, ref: str, *, wait: bool = True, timeout_s: float | None = None) -> None:
        """Deletes a VM in whatever state it is."""
        await self._client.send(calls.delete_vm(ref, wait, timeout_s))

    async def logs(self, ref: str, *, source: LogSource = "console", tail: int = 100) -> LogChunk:
        return await self._client.send(calls.vm_logs(ref, source, tail))

    def follow_logs(
        self, ref: str, *, source: LogSource = "console", tail: int = 100
    ) -> AsyncIterator[bytes]:
        """The last ``tail`` lines, then what is written, as it is written."""
        return self._client.stream(calls.follow_vm_logs(ref, source, tail))

    def console(self, ref: str) -> AbstractAsyncContextManager["AsyncConsole"]:
        """``async with client.vms.console(ref) as console``: the serial console, both ways."""
        return self._client.console(ref)

    async def why(self, ref: str) -> VmWhy:
        """Why it is as it is, and what to do; also for one that was deleted lately."""
        return await self._client.send(calls.vm_why(ref))

    def events(self, ref: str, *, limit: int | None = None) -> AsyncIterator[VmEvent]:
        return self._client.pages(lambda cursor: calls.vm_events(ref, limit, cursor))
