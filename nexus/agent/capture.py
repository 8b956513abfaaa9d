"""Capturing a running VM: its memory, its VMM's state and its disks, all of one moment.

Only what needs a guest that stands still happens while it does: the VMM writes its memory, and the
disks are cloned. Checksums, syncing and naming come after it goes on (``keep``).
"""

import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.to_thread

from nexus.agent import faults, snapshot_files
from nexus.agent.capture_disks import Clones, read_only_blobs
from nexus.agent.capture_files import CaptureFiles
from nexus.agent.errors import HostFull, StageFailed, host_full
from nexus.agent.inventory import cpu_model
from nexus.agent.layout import SnapshotPaths, VmPaths, is_disk
from nexus.agent.record import Record
from nexus.agent.tools import Tools
from nexus.api.common import Engine
from nexus.api.errors import Conflict, InvalidState, NexusError
from nexus.api.machines import Machine
from nexus.api.snapshots import HostSnapshot, SnapshotOrder
from nexus.api.vms import VmError
from nexus.images.errors import ImageError
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmError, VmmFailure
from nexus.vmm.types import SnapshotCreateParams

MIB = 1 << 20
PAGE = 4096


@dataclass
class Capture:
    """An order that a machine's task takes up between two of its steps."""

    order: SnapshotOrder
    folder: SnapshotPaths
    files: CaptureFiles
    base: str | None = None
    """The snapshot whose memory is in the folder, to lay this one's over."""
    changes: bool = False
    """The VMM is to write only the memory that changed."""
    done: anyio.Event = field(default_factory=anyio.Event)
    stands: bool = False
    """The guest stands still for it."""
    taken: "Taken | None" = None
    failed: NexusError | None = None

    async def outcome(self) -> "Taken":
        """Raises NexusError."""
        await self.done.wait()
        if self.taken is None:
            raise self.failed or Conflict("the VM was not captured", suggestion="try it again")
        return self.taken

    @contextmanager
    def answering(self, machine: Machine) -> Iterator[None]:
        """Whoever waits is told how it ends."""
        try:
            yield
        except NexusError as error:
            self.failed = error
        except StageFailed as failed:
            self.failed = not_now(machine, failed.error)
        finally:
            self.done.set()


@dataclass(frozen=True)
class Taken:
    """A moment of a VM: complete in the snapshot's folder, and not durable yet."""

    order: SnapshotOrder
    over_base: bool
    """Its memory is to be laid over that of its base."""
    machine: Machine
    engine: Engine
    vmm_version: str
    devices_told: bool
    pause_ms: float
    at: datetime


class Captures:
    """The orders of one machine that its task has not taken up yet."""

    def __init__(self) -> None:
        self.turn = anyio.Lock()
        """One snapshot of a machine after the other, from the order until it is on the shelf."""
        self.still = anyio.Lock()
        """Held while the guest must not be paused or resumed by anybody else."""
        self._waiting: list[Capture] = []

    @contextmanager
    def asked(
        self, order: SnapshotOrder, folder: SnapshotPaths, files: CaptureFiles, base: str | None
    ) -> Iterator[Capture]:
        """An order, for as long as somebody waits for it."""
        capture = Capture(order, folder, files, base)
        self._waiting.append(capture)
        try:
            yield capture
        finally:
            if capture in self._waiting:
                self._waiting.remove(capture)

    def next(self) -> Capture | None:
        return self._waiting.pop(0) if self._waiting else None

    def refuse(self, error: NexusError) -> None:
        """None of those that wait will be carried out."""
        while (capture := self.next()) is not None:
            capture.failed = error
            capture.done.set()


def no_longer(machine: Machine) -> NexusError:
    return InvalidState(
        f"VM {machine.name!r} is being deleted, or its host's agent ends", suggestion="nexus ls"
    )


def not_now(machine: Machine, error: VmError) -> NexusError:
    return InvalidState(
        f"VM {machine.name!r} cannot be captured: {error.message}",
        fault_message=error.fault_message,
        suggestion=error.suggestion or f"see how it is: nexus show {machine.name}",
    )


def check(order: SnapshotOrder, machine: Machine, record: Record, *, runs: bool) -> None:
    """Raises InvalidState or Conflict with a cure when this VM cannot be captured like this."""
    if not runs or record.phase != "running" or record.stop_asked_at is not None:
        raise InvalidState(
            f"VM {machine.name!r} does not run, so there is no memory to capture",
            suggestion=f"nexus start {machine.name}",
        )
    if order.kind == "full":
        return
    whole = "take a full snapshot first"
    if not record.tracks:
        raise Conflict(
            f"VM {machine.name!r} does not note which memory it writes (track_dirty_pages)",
            suggestion="take a full snapshot, or have it track dirty pages and reboot it",
        )
    if record.last_snapshot is None:
        raise Conflict(f"VM {machine.name!r} has no snapshot of this boot", suggestion=whole)
    if record.last_snapshot != order.parent_id:
        raise Conflict(
            f"the last snapshot of VM {machine.name!r} in this boot is {record.last_snapshot}, "
            f"not {order.parent_id}",
            suggestion=f"name {record.last_snapshot} as the parent, or {whole}",
        )


def changes_suffice(order: SnapshotOrder, record: Record, base: str | None) -> bool:
    """Whether the VMM need write no more than what changed: a guest stands still for milliseconds
    instead of the time that all of its memory takes.

    A diff is just that. A full snapshot is what changed since an earlier one, laid over it; and
    since a boot from nothing, what changed is all there is. nexus-qemu does so by itself.
    """
    if order.kind == "diff":
        return True
    if not record.tracks or record.engine != "firecracker":
        return False
    from_nothing = record.loaded_from is None and not record.captured
    return from_nothing or (base is not None and base == record.last_snapshot)


def lies_over_base(order: SnapshotOrder, record: Record, base: str | None) -> bool:
    """Whether what changed is to be laid over the memory of ``base``: only over what this boot was
    when that was taken. With one of an earlier boot, the changes are all there is."""
    ours = base is not None and base == record.last_snapshot
    return order.kind == "full" and ours and changes_suffice(order, record, base)


def tells_pages(folder: Path) -> bool:
    """Whether a hole in a file of this file system can be as small as a page of memory."""
    return os.statvfs(folder).f_bsize <= PAGE


def check_room(order: SnapshotOrder, machine: Machine, folder: Path) -> None:
    """Raises HostFull when there is no room for the memory, Conflict for a file system on which a
    diff cannot be told from zeros."""
    found = os.statvfs(folder)
    if order.kind == "diff":
        if not tells_pages(folder):
            raise Conflict(
                f"the file system of {folder} has blocks of {found.f_bsize} bytes, larger than a "
                "page of memory: a diff would be lost in them",
                suggestion="take a full snapshot",
            )
    elif found.f_bavail * found.f_frsize < machine.mem_mib * MIB:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent))
        what = f"there is no room for {machine.mem_mib} MiB of memory"
        raise host_full(what, full, folder.parent)


async def take(
    capture: Capture,
    machine: Machine,
    paths: VmPaths,
    tools: Tools,
    client: VmmClient,
    *,
    paused: bool,
) -> tuple[datetime, float]:
    """When the moment was, and for how many milliseconds the guest stood still for it.

    Whatever fails, the guest goes on, unless ``capture.stands`` says that it could not be
    resumed; one that was ``paused`` before stays so. Raises NexusError.
    """
    begun = time.perf_counter()
    capture.stands = not paused
    try:
        if not paused:
            await _tell(machine, client.pause)
        at = datetime.now(UTC)
        faults.point("capture_paused")
        await create(capture, machine, paths, tools, client)
    finally:
        if capture.stands:
            # Also when the agent ends in the middle.
            with anyio.CancelScope(shield=True):
                await _tell(machine, client.resume)
            capture.stands = False
    pause_ms = 0.0 if paused else round((time.perf_counter() - begun) * 1000, 2)
    faults.point("capture_resumed")
    try:
        capture.files.move(capture.folder)
    except OSError as error:
        raise host_full("the snapshot cannot be collected", error, paths.root) from error
    return at, pause_ms


async def _tell(machine: Machine, ask: Callable[[], Awaitable[None]]) -> None:
    try:
        await ask()
    except VmmFailure as error:
        raise Conflict(
            f"VM {machine.name!r} cannot be captured: {error.message}",
            fault_message=error.fault_message if isinstance(error, VmmError) else None,
            suggestion=f"see how it is: nexus show {machine.name}",
        ) from error


async def create(
    capture: Capture, machine: Machine, paths: VmPaths, tools: Tools, client: VmmClient
) -> None:
    """Memory, state and disks of a guest that stands still. Raises NexusError.

    A VMM may still carry out what its guest asked of a disk before: requests that wait for a rate
    limit. What it writes after it saved its state it writes again once that is loaded, so disks
    that are cloned afterwards fit. A clone from before fits when nothing was written since.
    """
    params = SnapshotCreateParams(
        snapshot_path=capture.files.state,
        mem_file_path=capture.files.memory,
        snapshot_type="Diff" if capture.changes else "Full",
    )
    folder = capture.folder
    clones = Clones(machine, paths, folder, tools)
    refused: VmmFailure | None = None
    async with anyio.create_task_group() as both:
        both.start_soon(anyio.to_thread.run_sync, clones.early)
        try:
            await client.create_snapshot(params)
        except VmmFailure as error:
            refused = error
    if refused is not None:
        raise _refusal(machine, refused, capture.files) from refused
    faults.point("capture_created")
    try:
        await anyio.to_thread.run_sync(clones.late)
    except OSError as error:
        raise host_full("the disks cannot be cloned", error, folder.dir.parent) from error
    except ImageError as error:
        raise Conflict(str(error), suggestion=error.suggestion) from error
    faults.point("capture_cloned")


def _refusal(machine: Machine, error: VmmFailure, files: CaptureFiles) -> NexusError:
    if not isinstance(error, VmmError):
        return Conflict(
            f"VM {machine.name!r} gave no snapshot: {error.message}",
            suggestion=f"see how it is: nexus show {machine.name}",
        )
    fault = error.fault_message
    if "os error 28" in fault or "No space left" in fault:
        return HostFull(
            f"there is no room for the memory of VM {machine.name!r}",
            fault_message=fault,
            suggestion=f"free space on the host (df -h {files.root}), or delete snapshots",
        )
    if files.ram is not None and "os error 13" in fault:
        return Conflict(
            f"the VMM of VM {machine.name!r} may not open the files for its snapshot",
            fault_message=fault,
            suggestion="start the agent with NEXUS_CAPTURE_IN_MEMORY=0",
        )
    return Conflict(
        f"the VMM of VM {machine.name!r} gives no snapshot",
        fault_message=fault,
        suggestion=f"read its log: nexus logs {machine.name} --source vmm",
    )


def seal(taken: Taken, folder: SnapshotPaths, written: CaptureFiles) -> HostSnapshot:
    """Makes the files durable and says what they are. Blocks for as long as reading them takes;
    raises OSError."""
    order, machine = taken.order, taken.machine
    written.save(folder)
    known = read_only_blobs(machine)
    if taken.over_base:
        memory = snapshot_files.merge(folder.base, folder.memory)
    else:
        memory = snapshot_files.seal(folder.memory, memory=order.kind == "full")
    folder.base.unlink(missing_ok=True)
    files = [memory, snapshot_files.seal(folder.state)]
    files += [
        snapshot_files.seal(disk, sha256=known.get(disk.name))
        for disk in sorted(folder.dir.iterdir())
        if is_disk(disk.name)
    ]
    return HostSnapshot(
        id=order.id,
        vm_id=order.vm_id,
        kind=order.kind,
        parent_id=order.parent_id,
        needs_parent=order.kind == "diff",
        engine=taken.engine,
        vmm_version=taken.vmm_version,
        cpu_template=None,
        cpu=cpu_model(),
        vcpu=machine.vcpu,
        mem_mib=machine.mem_mib,
        files=files,
        size_bytes=sum(file.size_bytes for file in files),
        disk_bytes=sum(file.disk_bytes for file in files),
        pause_ms=taken.pause_ms,
        taken_at=taken.at,
        machine=machine,
        devices_told=taken.devices_told,
    )
