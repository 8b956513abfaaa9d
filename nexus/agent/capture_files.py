"""Where a VMM writes its memory and its state while the guest stands still for it.

Firecracker syncs both files before it answers, so most of a pause would be the disk's. Where the
host has the memory to spare it writes into that, and they get to the disk once the guest goes on.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nexus.agent.layout import CAPTURED_MEMORY, CAPTURED_STATE, SnapshotPaths, VmPaths
from nexus.agent.meminfo import meminfo
from nexus.agent.record import Record
from nexus.images import sparse

SPARED = 8
"""One part in so many of the host's memory is not lent for this: VMs may grow into it meanwhile."""


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
        """Has the folder have what is in memory. Blocks for a copy; raises OSError."""
        for source, dest in zip(self.ram or (), (folder.memory, folder.state), strict=False):
            with dest.open("xb") as made:
                sparse.copy(source, made.fileno())


class Ram:
    """The host's memory, as far as it is lent to captures."""

    def __init__(self, *, lends: bool = True) -> None:
        self._lends = lends
        self._lent_mib = 0

    @contextmanager
    def files_for(self, record: Record, mem_mib: int, paths: VmPaths) -> Iterator[CaptureFiles]:
        """Files for a capture. Those in memory are gone with the process, whatever ends it."""
        if not self._is_for(record, mem_mib):
            yield CaptureFiles(CAPTURED_MEMORY, CAPTURED_STATE, paths.root)
            return
        self._lent_mib += mem_mib
        try:
            with _unnamed() as memory, _unnamed() as state:
                ours = f"/proc/{os.getpid()}/fd"
                yield CaptureFiles(
                    f"{ours}/{memory}", f"{ours}/{state}", paths.root, (memory, state)
                )
        finally:
            self._lent_mib -= mem_mib

    def _is_for(self, record: Record, mem_mib: int) -> bool:
        # One in a jail cannot see them, and nexus-qemu does not sync.
        if not self._lends or record.engine != "firecracker" or record.jailed:
            return False
        found = meminfo()
        spare_mib = (found["MemAvailable"] - found["MemTotal"] // SPARED) // 1024
        return mem_mib + self._lent_mib <= spare_mib


@contextmanager
def _unnamed() -> Iterator[int]:
    descriptor = os.memfd_create("nexus-capture", os.MFD_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
