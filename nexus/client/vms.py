"""``client.vms``, sync and async."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import JsonValue

from nexus.api.endings import RestartPolicy
from nexus.api.vms import LogChunk, LogSource, Vm, VmCreate, VmEvent, VmState, VmUpdate, WaitState
from nexus.api.why import VmWhy
from nexus.client.bulk import AsyncBulkCalls, BulkCalls
from nexus.client.calls import vms as calls
from nexus.client.devices import AsyncDeviceChanges, DeviceChanges
from nexus.client.guests import AsyncGuestCalls, GuestCalls
from nexus.client.snapshots import AsyncSnapshotCalls, SnapshotCalls

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.console import AsyncConsole, Console
    from nexus.client.sync_client import Client


Never = Literal["never"]


def changes_of(
    name: str | None,
    tags: Mapping[str, str] | None,
    restart_policy: RestartPolicy | None,
    ttl_s: int | None,
    expires_at: datetime | Never | None,
) -> VmUpdate:
    """What an update sends: what was given. Raises ValueError for what no VM can have."""
    given: dict[str, Any] = {
        "name": name,
        "tags": tags,
        "restart_policy": restart_policy,
        "ttl": ttl_s,
        "expires_at": expires_at,
    }
    known = {field: v for field, v in given.items() if v is not None}
    if expires_at == "never":
        known["expires_at"] = None
    return VmUpdate.model_validate(known)


class Vms(BulkCalls, DeviceChanges, GuestCalls, SnapshotCalls):
    """``client.vms``. A VM is named by its id or its name."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(
        self,
        spec: VmCreate,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Vm:
        """Makes a VM. With ``wait``, returns when it is so or in ``error``.

        The same ``idempotency_key`` gives the same VM for a day; without one, each call has its
        own, so that a connection that breaks makes no second VM.
        """
        return self._client.send(calls.create_vm(spec, wait, timeout_s, idempotency_key))

    def list(
        self,
        *,
        state: VmState | None = None,
        name: str | None = None,
        host: str | None = None,
        tags: Sequence[str] = (),
        project: str | None = None,
        template: str | None = None,
        pooled: bool = False,
        limit: int | None = None,
    ) -> Iterator[Vm]:
        """The VMs that meet all conditions, oldest first.

        ``name`` is how names begin, ``host`` a host's id or name, ``tags`` are ``key=value`` or
        ``key`` with any value, ``template`` is the id or name of the template that they come
        from, ``pooled`` shows those too that wait in pools; ``limit`` is the size of a page.
        """
        narrowed = calls.VmQuery(state, name, host, tags, project, limit, template, pooled)
        return self._client.pages(lambda cursor: calls.list_vms(narrowed, cursor))

    def get(self, ref: str) -> Vm:
        return self._client.send(calls.get_vm(ref))

    def get_with_etag(self, ref: str) -> tuple[Vm, str]:
        """A VM, and the ETag that lets a change require that it is still as it is here."""
        return self._client.send_for_etag(calls.get_vm(ref))

    def update(
        self,
        ref: str,
        *,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        restart_policy: RestartPolicy | None = None,
        ttl_s: int | None = None,
        expires_at: datetime | Never | None = None,
        if_match: str | None = None,
    ) -> Vm:
        """Changes what was given: its name, which its guest gets at its next start, all of its
        tags, what follows its end, and when it is ended and deleted."""
        changes = changes_of(name, tags, restart_policy, ttl_s, expires_at)
        return self._client.send(calls.update_vm(ref, changes, if_match))

    def start(
        self,
        ref: str,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> None:
        self._client.send(calls.act_on_vm(ref, "start", wait, timeout_s, if_match))

    def stop(
        self,
        ref: str,
        *,
        force: bool = False,
        grace_s: float | None = None,
        wait: WaitState | None = None,
        if_match: str | None = None,
    ) -> None:
        """Asks the guest to power off; kills it after ``grace_s`` seconds, or at once."""
        self._client.send(calls.stop_vm(ref, force, grace_s, wait, if_match))

    def pause(
        self,
        ref: str,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> None:
        self._client.send(calls.act_on_vm(ref, "pause", wait, timeout_s, if_match))

    def resume(
        self,
        ref: str,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> None:
        self._client.send(calls.act_on_vm(ref, "resume", wait, timeout_s, if_match))

    def delete(
        self,
        ref: str,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> None:
        """Deletes a VM in whatever state it is."""
        self._client.send(calls.delete_vm(ref, wait, timeout_s, if_match))

    def logs(self, ref: str, *, source: LogSource = "console", tail: int = 100) -> LogChunk:
        return self._client.send(calls.vm_logs(ref, source, tail))

    def follow_logs(
        self, ref: str, *, source: LogSource = "console", tail: int = 100
    ) -> Iterator[bytes]:
        """The last ``tail`` lines, then what is written, as it is written."""
        return self._client.stream(calls.follow_vm_logs(ref, source, tail))

    def firecracker(self, ref: str, method: str, path: str, body: JsonValue = None) -> JsonValue:
        """A request to the VMM's own API, ``("web", "GET", "/vm/config")``: its answer's JSON, or
        None. What it changes is observed and not taken back."""
        return self._client.send(calls.firecracker(ref, method, path, body))

    def console(self, ref: str) -> AbstractContextManager["Console"]:
        """``with client.vms.console(ref) as console``: the serial console, both ways."""
        return self._client.console(ref)

    def why(self, ref: str) -> VmWhy:
        """Why it is as it is, and what to do; also for one that was deleted lately."""
        return self._client.send(calls.vm_why(ref))

    def events(self, ref: str, *, limit: int | None = None) -> Iterator[VmEvent]:
        return self._client.pages(lambda cursor: calls.vm_events(ref, limit, cursor))


class AsyncVms(AsyncBulkCalls, AsyncDeviceChanges, AsyncGuestCalls, AsyncSnapshotCalls):
    """``client.vms``. A VM is named by its id or its name."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def create(
        self,
        spec: VmCreate,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Vm:
        """Makes a VM. With ``wait``, returns when it is so or in ``error``.

        The same ``idempotency_key`` gives the same VM for a day; without one, each call has its
        own, so that a connection that breaks makes no second VM.
        """
        return await self._client.send(calls.create_vm(spec, wait, timeout_s, idempotency_key))

    def list(
        self,
        *,
        state: VmState | None = None,
        name: str | None = None,
        host: str | None = None,
        tags: Sequence[str] = (),
        project: str | None = None,
        template: str | None = None,
        pooled: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[Vm]:
        """The VMs that meet all conditions, oldest first.

        ``name`` is how names begin, ``host`` a host's id or name, ``tags`` are ``key=value`` or
        ``key`` with any value, ``template`` is the id or name of the template that they come
        from, ``pooled`` shows those too that wait in pools; ``limit`` is the size of a page.
        """
        narrowed = calls.VmQuery(state, name, host, tags, project, limit, template, pooled)
        return self._client.pages(lambda cursor: calls.list_vms(narrowed, cursor))

    async def get(self, ref: str) -> Vm:
        return await self._client.send(calls.get_vm(ref))

    async def get_with_etag(self, ref: str) -> tuple[Vm, str]:
        """A VM, and the ETag that lets a change require that it is still as it is here."""
        return await self._client.send_for_etag(calls.get_vm(ref))

    async def update(
        self,
        ref: str,
        *,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        restart_policy: RestartPolicy | None = None,
        ttl_s: int | None = None,
        expires_at: datetime | Never | None = None,
        if_match: str | None = None,
    ) -> Vm:
        """Changes what was given: its name, which its guest gets at its next start, all of its
        tags, what follows its end, and when it is ended and deleted."""
        changes = changes_of(name, tags, restart_policy, ttl_s, expires_at)
        return await self._client.send(calls.update_vm(ref, changes, if_match))

    async def start(
        self,
        ref: str,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> None:
        await self._client.send(calls.act_on_vm(ref, "start", wait, timeout_s, if_match))

    async def stop(
        self,
        ref: str,
        *,
        force: bool = False,
        grace_s: float | None = None,
        wait: WaitState | None = None,
        if_match: str | None = None,
    ) -> None:
        """Asks the guest to power off; kills it after ``grace_s`` seconds, or at once."""
        await self._client.send(calls.stop_vm(ref, force, grace_s, wait, if_match))

    async def pause(
        self,
        ref: str,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> None:
        await self._client.send(calls.act_on_vm(ref, "pause", wait, timeout_s, if_match))

    async def resume(
        self,
        ref: str,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> None:
        await self._client.send(calls.act_on_vm(ref, "resume", wait, timeout_s, if_match))

    async def delete(
        self,
        ref: str,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> None:
        """Deletes a VM in whatever state it is."""
        await self._client.send(calls.delete_vm(ref, wait, timeout_s, if_match))

    async def logs(self, ref: str, *, source: LogSource = "console", tail: int = 100) -> LogChunk:
        return await self._client.send(calls.vm_logs(ref, source, tail))

    def follow_logs(
        self, ref: str, *, source: LogSource = "console", tail: int = 100
    ) -> AsyncIterator[bytes]:
        """The last ``tail`` lines, then what is written, as it is written."""
        return self._client.stream(calls.follow_vm_logs(ref, source, tail))

    async def firecracker(
        self, ref: str, method: str, path: str, body: JsonValue = None
    ) -> JsonValue:
        """A request to the VMM's own API, ``("web", "GET", "/vm/config")``: its answer's JSON, or
        None. What it changes is observed and not taken back."""
        return await self._client.send(calls.firecracker(ref, method, path, body))

    def console(self, ref: str) -> AbstractAsyncContextManager["AsyncConsole"]:
        """``async with client.vms.console(ref) as console``: the serial console, both ways."""
        return self._client.console(ref)

    async def why(self, ref: str) -> VmWhy:
        """Why it is as it is, and what to do; also for one that was deleted lately."""
        return await self._client.send(calls.vm_why(ref))

    def events(self, ref: str, *, limit: int | None = None) -> AsyncIterator[VmEvent]:
        return self._client.pages(lambda cursor: calls.vm_events(ref, limit, cursor))
