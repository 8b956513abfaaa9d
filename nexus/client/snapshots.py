"""``client.snapshots``, and snapshots in ``client.vms``, sync and async."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING

from nexus.api.snapshots import SnapshotKind
from nexus.api.vm_snapshots import (
    Snapshot,
    SnapshotClone,
    SnapshotCreate,
    SnapshotSchedule,
    SnapshotScheduleSet,
    SnapshotState,
    VmRestore,
)
from nexus.api.vms import Vm, WaitState
from nexus.client.calls import snapshots as calls
from nexus.client.files import AsyncRemoteFile, RemoteFile

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client


def request_of(name: str | None, kind: SnapshotKind) -> SnapshotCreate:
    """Raises ValueError for a name that no snapshot can have."""
    return SnapshotCreate(kind=kind) if name is None else SnapshotCreate(name=name, kind=kind)


def archive_headers(size_bytes: int | None) -> dict[str, str]:
    """What a request says that sends an archive."""
    headers = {"content-type": "application/octet-stream"}
    return headers if size_bytes is None else {**headers, "content-length": str(size_bytes)}


class Snapshots:
    """``client.snapshots``. A snapshot is named by its id or its name."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(
        self,
        vm: str,
        *,
        name: str | None = None,
        kind: SnapshotKind = "full",
        wait: bool = True,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Snapshot:
        """Takes one of a VM that runs or is paused. With ``wait``, returns when it is ``ready`` or
        in ``error``. A ``diff`` holds what changed since the VM's snapshot before it."""
        request = request_of(name, kind)
        return self._client.send(
            calls.create_snapshot(vm, request, wait, timeout_s, idempotency_key)
        )

    def list(
        self,
        *,
        vm: str | None = None,
        name: str | None = None,
        state: SnapshotState | None = None,
        limit: int | None = None,
    ) -> Iterator[Snapshot]:
        """Oldest first. ``vm`` is the id or name of the VM they were taken of, also when it is
        gone; ``name`` is how names begin."""
        narrowed = calls.SnapshotQuery(vm, name, state, limit)
        return self._client.pages(lambda cursor: calls.list_snapshots(narrowed, cursor))

    def get(self, ref: str) -> Snapshot:
        return self._client.send(calls.get_snapshot(ref))

    def get_with_etag(self, ref: str) -> tuple[Snapshot, str]:
        """A snapshot, and the ETag that lets a change require that it is still as it is here."""
        return self._client.send_for_etag(calls.get_snapshot(ref))

    def rename(self, ref: str, name: str, *, if_match: str | None = None) -> Snapshot:
        return self._client.send(calls.rename_snapshot(ref, name, if_match))

    def delete(
        self,
        ref: str,
        *,
        merge: bool = False,
        wait: bool = True,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> None:
        """Refused while a diff on top of it, or a VM without its disks yet, needs it; ``merge``
        makes such diffs whole first."""
        self._client.send(calls.delete_snapshot(ref, merge, wait, timeout_s, if_match))

    def clone(
        self,
        ref: str,
        request: SnapshotClone | None = None,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Sequence[Vm]:
        """Makes one VM from it, or ``count`` of them: all or none. With ``wait``, returns when
        each is so or in ``error``."""
        wish = request or SnapshotClone()
        return self._client.send(calls.instantiate(ref, wish, wait, timeout_s, idempotency_key))

    def export(self, ref: str) -> AbstractContextManager[RemoteFile]:
        """``with client.snapshots.export(ref) as file``: one archive, ``file.size_bytes`` large, to
        be read once, piece by piece. It holds what the guest had in memory."""
        return self._client.download(calls.export_snapshot(ref))

    def import_archive(
        self,
        content: Iterator[bytes],
        *,
        name: str | None = None,
        host: str | None = None,
        size_bytes: int | None = None,
    ) -> Snapshot:
        """A snapshot of what an export wrote, sent as it comes. Its host verifies every file."""
        call = calls.import_snapshot(name, host)
        return self._client.send_stream(call, content, archive_headers(size_bytes))


class SnapshotCalls:
    """The part of ``client.vms`` that takes snapshots and goes back to them."""

    _client: "Client"

    def snapshot(
        self,
        ref: str,
        *,
        name: str | None = None,
        kind: SnapshotKind = "full",
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Snapshot:
        """See ``client.snapshots.create``."""
        return self._client.send(
            calls.create_snapshot(ref, request_of(name, kind), wait, timeout_s, None)
        )

    def restore(
        self,
        ref: str,
        snapshot: str,
        *,
        start: bool = True,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> Vm:
        """Puts a VM back to one of its own snapshots, memory and disks; what it does now is ended
        at once. Without ``start`` it is left paused."""
        request = VmRestore(snapshot=snapshot, start=start)
        return self._client.send(calls.restore_vm(ref, request, wait, timeout_s, if_match))

    def set_snapshot_schedule(self, ref: str, *, every_s: int, keep: int) -> SnapshotSchedule:
        """Has one taken every so often, and keeps the newest ``keep`` of them."""
        wanted = SnapshotScheduleSet(every=every_s, keep=keep)
        return self._client.send(calls.set_schedule(ref, wanted))

    def snapshot_schedule(self, ref: str) -> SnapshotSchedule:
        """Raises NotFoundError when the VM has none."""
        return self._client.send(calls.get_schedule(ref))

    def delete_snapshot_schedule(self, ref: str) -> None:
        """The snapshots that it made stay."""
        self._client.send(calls.delete_schedule(ref))


class AsyncSnapshots:
    """``client.snapshots``. A snapshot is named by its id or its name."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def create(
        self,
        vm: str,
        *,
        name: str | None = None,
        kind: SnapshotKind = "full",
        wait: bool = True,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Snapshot:
        """Takes one of a VM that runs or is paused. With ``wait``, returns when it is ``ready`` or
        in ``error``. A ``diff`` holds what changed since the VM's snapshot before it."""
        request = request_of(name, kind)
        return await self._client.send(
            calls.create_snapshot(vm, request, wait, timeout_s, idempotency_key)
        )

    def list(
        self,
        *,
        vm: str | None = None,
        name: str | None = None,
        state: SnapshotState | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Snapshot]:
        """Oldest first. ``vm`` is the id or name of the VM they were taken of, also when it is
        gone; ``name`` is how names begin."""
        narrowed = calls.SnapshotQuery(vm, name, state, limit)
        return self._client.pages(lambda cursor: calls.list_snapshots(narrowed, cursor))

    async def get(self, ref: str) -> Snapshot:
        return await self._client.send(calls.get_snapshot(ref))

    async def get_with_etag(self, ref: str) -> tuple[Snapshot, str]:
        """A snapshot, and the ETag that lets a change require that it is still as it is here."""
        return await self._client.send_for_etag(calls.get_snapshot(ref))

    async def rename(self, ref: str, name: str, *, if_match: str | None = None) -> Snapshot:
        return await self._client.send(calls.rename_snapshot(ref, name, if_match))

    async def delete(
        self,
        ref: str,
        *,
        merge: bool = False,
        wait: bool = True,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> None:
        """Refused while a diff on top of it, or a VM without its disks yet, needs it; ``merge``
        makes such diffs whole first."""
        await self._client.send(calls.delete_snapshot(ref, merge, wait, timeout_s, if_match))

    async def clone(
        self,
        ref: str,
        request: SnapshotClone | None = None,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Sequence[Vm]:
        """Makes one VM from it, or ``count`` of them: all or none. With ``wait``, returns when
        each is so or in ``error``."""
        wish = request or SnapshotClone()
        return await self._client.send(
            calls.instantiate(ref, wish, wait, timeout_s, idempotency_key)
        )

    def export(self, ref: str) -> AbstractAsyncContextManager[AsyncRemoteFile]:
        """``async with client.snapshots.export(ref) as file``: one archive, ``file.size_bytes``
        large, to be read once, piece by piece. It holds what the guest had in memory."""
        return self._client.download(calls.export_snapshot(ref))

    async def import_archive(
        self,
        content: AsyncIterator[bytes],
        *,
        name: str | None = None,
        host: str | None = None,
        size_bytes: int | None = None,
    ) -> Snapshot:
        """A snapshot of what an export wrote, sent as it comes. Its host verifies every file."""
        call = calls.import_snapshot(name, host)
        return await self._client.send_stream(call, content, archive_headers(size_bytes))


class AsyncSnapshotCalls:
    """The part of ``client.vms`` that takes snapshots and goes back to them."""

    _client: "AsyncClient"

    async def snapshot(
        self,
        ref: str,
        *,
        name: str | None = None,
        kind: SnapshotKind = "full",
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> Snapshot:
        """See ``client.snapshots.create``."""
        return await self._client.send(
            calls.create_snapshot(ref, request_of(name, kind), wait, timeout_s, None)
        )

    async def restore(
        self,
        ref: str,
        snapshot: str,
        *,
        start: bool = True,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        if_match: str | None = None,
    ) -> Vm:
        """Puts a VM back to one of its own snapshots, memory and disks; what it does now is ended
        at once. Without ``start`` it is left paused."""
        request = VmRestore(snapshot=snapshot, start=start)
        return await self._client.send(calls.restore_vm(ref, request, wait, timeout_s, if_match))

    async def set_snapshot_schedule(self, ref: str, *, every_s: int, keep: int) -> SnapshotSchedule:
        """Has one taken every so often, and keeps the newest ``keep`` of them."""
        wanted = SnapshotScheduleSet(every=every_s, keep=keep)
        return await self._client.send(calls.set_schedule(ref, wanted))

    async def snapshot_schedule(self, ref: str) -> SnapshotSchedule:
        """Raises NotFoundError when the VM has none."""
        return await self._client.send(calls.get_schedule(ref))

    async def delete_snapshot_schedule(self, ref: str) -> None:
        """The snapshots that it made stay."""
        await self._client.send(calls.delete_schedule(ref))
