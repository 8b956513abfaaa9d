"""Where a VMM writes its memory and its state while the guest stands still for it.

Firecracker syncs both files before it answers, so most of a pause would be the disk's. Where the
host has the memory to spare it writes into that, and they get to the disk once the guest goes on.
"""

import fcntl
import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from nexus.agent.layout import CAPTURED_MEMORY, CAPTURED_STATE, SnapshotPaths, VmPaths
from nexus.agent.meminfo import meminfo
from nexus.agent.record import Record
from nexus.images import sparse

SPARED = 8
"""One part in so many of the host's memory is not lent for this: VMs may grow into it meanwhile."""
MOST_NUMBERS = 1 << 15
"""Of descriptors: the kernel's table of a process is as long as the highest one."""
PAGE = 4096
MIB = 1 << 20

log = structlog.get_logger("captures")
_turns = count()


@dataclass(frozen=True)
class CaptureFiles:
    """The two files of one capture, by the names that the VMM is told."""

    memory: str
    state: str
    root: Path
    """Of the VMM."""
    ram: tuple[int, int] | None = None
    """The descriptors of both in the host's memory; None when they are in the root."""

    def move(self, folder: SnapshotPaths) -> None:
        """Has the folder have what is on the disk: at once. Raises OSError."""
        if self.ram is None:
            (self.root / self.memory).rename(folder.memory)
            (self.root / self.state).rename(folder.state)

    def save(self, folder: SnapshotPaths) -> None:
        """Has the folder have what is in memory, which the host has back then. Blocks for a copy;
        raises OSError."""
        for source, dest in zip(self.ram or (), (folder.memory, folder.state), strict=False):
            with dest.open("xb") as made:
                sparse.copy(source, made.fileno())
            os.ftruncate(source, 0)


class Ram:
    """The host's memory, as far as it is lent to captures."""

    def __init__(self, *, lends: bool = True) -> None:
        self._lends = lends
        self._lent_mib = 0

    @asynccontextmanager
    async def files_for(
        self, record: Record, mem_mib: int, paths: VmPaths
    ) -> AsyncIterator[CaptureFiles]:
        """Files for a capture. Those in memory are gone with the process, whatever ends it."""
        ram = self._take(record, mem_mib)
        if ram is None:
            yield CaptureFiles(CAPTURED_MEMORY, CAPTURED_STATE, paths.root)
            return
        memory, state = ram
        ours = f"/proc/{os.getpid()}/fd"
        self._lent_mib += mem_mib
        try:
            yield CaptureFiles(f"{ours}/{memory}", f"{ours}/{state}", paths.root, ram)
        finally:
            # To give a gigabyte back takes 120 ms.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_close, ram)
            self._lent_mib -= mem_mib

    def _take(self, record: Record, mem_mib: int) -> tuple[int, int] | None:
        if not self._is_for(record, mem_mib):
            return None
        try:
            return _unnamed()
        except OSError as error:
            log.warning("a capture goes to the disk", error=str(error))
            return None

    def _is_for(self, record: Record, mem_mib: int) -> bool:
        # One in a jail cannot see them, and nexus-qemu does not sync.
        if not self._lends or record.engine != "firecracker" or record.jailed:
            return False
        found = meminfo()
        spare_mib = (found["MemAvailable"] - found["MemTotal"] // SPARED) // 1024
        return mem_mib + self._lent_mib <= spare_mib


def _unnamed() -> tuple[int, int] | None:
    """Two files without a name; None where holes in them are larger than pages. Raises OSError."""
    memory = _numbered(os.memfd_create("nexus-capture", os.MFD_CLOEXEC))
    try:
        if _tells_pages(memory):
            return memory, _numbered(os.memfd_create("nexus-capture", os.MFD_CLOEXEC))
    except BaseException:
        os.close(memory)
        raise
    os.close(memory)
    return None


def _numbered(descriptor: int) -> int:
    """The same under a number that no other file gets for long: a VMM that opens it too late must
    not find another in its place. Others get the lowest that is free."""
    half = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], MOST_NUMBERS) // 2
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, half + next(_turns) % (half // 2))
    finally:
        os.close(descriptor)


def _tells_pages(descriptor: int) -> bool:
    """Whether a hole of it can be as small as a page: what a VMM did not write must not look like
    zeros. Where shared memory has huge pages it does, and that can be changed at any time."""
    size, at = 8 * MIB, 4 * MIB + PAGE
    os.ftruncate(descriptor, size)
    os.pwrite(descriptor, b"x" * PAGE, at)
    found = [*sparse.data_ranges(descriptor, size)]
    os.ftruncate(descriptor, 0)
    return found == [(at, at + PAGE)]


def _close(descriptors: tuple[int, int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
