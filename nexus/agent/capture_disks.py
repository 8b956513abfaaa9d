"""The disks of a VM that is captured, cloned while its guest stands still."""

import time
from collections.abc import Iterator
from contextlib import suppress

from nexus.agent import snapshot_files
from nexus.agent.layout import CONFIG_DRIVE, ROOTFS, SnapshotPaths, VmPaths, drive_file
from nexus.agent.tools import Tools
from nexus.agent.vmm_config import needs_config_drive
from nexus.api.machines import Machine
from nexus.images.errors import ImageError

SETTLED_NS = 100_000_000
"""A file's time stamps may lag behind by a tick of the kernel's clock, at most 10 ms."""


class Clones:
    """A VM's disks in the snapshot's folder."""

    def __init__(
        self, machine: Machine, paths: VmPaths, folder: SnapshotPaths, tools: Tools
    ) -> None:
        self._machine = machine
        self._paths = paths
        self._folder = folder
        self._tools = tools
        self._good: dict[str, tuple[int, int]] = {}
        """Clones, with the stamp that the disk had, if that can tell of later writes."""

    def early(self) -> None:
        """Beside the VMM at its work: most of the time nothing is written meanwhile."""
        with suppress(OSError, ImageError):  # ``late`` meets it again, and says so
            for name in self._disks():
                seen, now = self._stamp(name), time.time_ns()
                self._clone(name)
                if abs(now - seen[0]) > SETTLED_NS:
                    self._good[name] = seen

    def late(self) -> None:
        """What was written to since, or so shortly before that its time stamp does not tell."""
        for name in self._disks():
            if self._good.get(name) != self._stamp(name):
                self._clone(name)

    def _disks(self) -> Iterator[str]:
        machine = self._machine
        if machine.rootfs is not None:
            yield ROOTFS
        yield from (drive_file(drive.name) for drive in machine.drives)
        if needs_config_drive(machine):
            yield CONFIG_DRIVE

    def _clone(self, name: str) -> None:
        read_only = read_only_blobs(self._machine)
        if name in read_only:
            self._tools.store.link(read_only[name], self._folder.disk(name))
        else:
            snapshot_files.clone(self._paths.root / name, self._folder.disk(name))

    def _stamp(self, name: str) -> tuple[int, int]:
        found = (self._paths.root / name).lstat()
        return found.st_mtime_ns, found.st_size


def read_only_blobs(machine: Machine) -> dict[str, str]:
    """Drives that are content of the image store: their files' names, and the content's sha256."""
    return {
        drive_file(drive.name): drive.blob.sha256
        for drive in machine.drives
        if drive.read_only and drive.blob is not None and drive.volume is None
    }
