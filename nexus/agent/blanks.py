"""Folders of VMs that are to come, made while nobody waits for them.

Before a VMM is spawned a VM needs a folder with half a dozen small files. On ext4 each costs up to
a millisecond on a host where VMs come and go: the file system steps over every inode that was freed
within the last seconds. So a few are kept ready, and a new VM's folder is one of them, renamed.
"""

import os
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from nexus.agent import disks
from nexus.agent.atomic import spare_of
from nexus.agent.layout import Layout, VmPaths
from nexus.agent.record import Record
from nexus.api.machines import Machine
from nexus.ids import new_id

KEPT = 8
QUIET_S = 0.5
"""After one was taken: the VM that it became is to start first."""
AGAIN_S = 60.0
"""When it is tried again to make some, on a disk that was full."""

log = structlog.get_logger("blanks")


class Blanks:
    """The folders that are ready. ``run`` must be running in a task; without it there are none."""

    def __init__(self, layout: Layout) -> None:
        self._folder = layout.blanks_dir
        self._ready: list[Path] = []
        self._wanted = anyio.Event()

    def become(self, paths: VmPaths, record: Record, desired: Machine) -> bool:
        """Makes a folder that is ready the VM's, with its record and wish in it; it appears whole.

        False when there is none, or none that fits: then nothing was done. Raises OSError on a
        full disk.
        """
        if paths.jailed or not self._ready:
            return False
        blank = self._ready.pop()
        self._wanted.set()
        try:
            # Nobody else knows these files yet, so they need not change as wholes.
            _put(blank / paths.status.name, record.text())
            _put(blank / paths.desired.name, desired.model_dump_json().encode())
            blank.rename(paths.dir)
        except FileNotFoundError:
            # Somebody tidied up.
            return False
        except OSError:
            disks.remove_tree(blank)
            if paths.dir.exists():
                return False
            raise
        return True

    async def run(self) -> None:
        """Keeps some ready until cancelled."""
        swept = False
        while True:
            self._wanted = anyio.Event()
            rest_s: float | None = None
            try:
                if not swept:
                    await anyio.to_thread.run_sync(self._sweep)
                    swept = True
                while len(self._ready) < KEPT:
                    self._ready.append(await anyio.to_thread.run_sync(self._make))
            except OSError as error:
                log.warning("no folder is made ready", error=str(error))
                rest_s = AGAIN_S
            with anyio.move_on_after(rest_s):
                await self._wanted.wait()
            await anyio.sleep(QUIET_S)

    def _sweep(self) -> None:
        """Away with those of an earlier agent: it may have been killed while it made one."""
        disks.remove_tree(self._folder)
        self._folder.mkdir(mode=0o700)

    def _make(self) -> Path:
        blank = self._folder / new_id()
        paths = VmPaths(vm_id=blank.name, dir=blank, jailed=False)
        often = (paths.status, paths.nics)
        try:
            disks.ensure_folder(paths)
            for file in (*often, *map(spare_of, often), paths.desired, paths.vmm_log):
                os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError:
            disks.remove_tree(blank)
            raise
        return blank


def _put(file: Path, text: bytes) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CLOEXEC), "wb") as opened:
        opened.write(text)
