"""Who has which volume of this host: a VMM that runs, or a copy in the making, never two at once.

The manager gives a volume to one VM at a time. This holds also where its view is a moment old: a
guest that its restart policy starts again, while the volume has gone to another VM.
"""

from collections.abc import Iterable
from pathlib import Path

import anyio
import anyio.to_thread

from nexus.agent import drives, faults
from nexus.agent.errors import HostFull, StageFailed, disk_failure
from nexus.agent.layout import Layout
from nexus.api.errors import InUse
from nexus.api.machines import Machine


def volumes_of(machine: Machine) -> set[str]:
    """The ids of a machine's volumes."""
    return {drive.volume for drive in machine.drives if drive.volume is not None}


class VolumeUse:
    """Kept in memory: a new agent learns it from the VMMs that it finds."""

    def __init__(self) -> None:
        self._users: dict[str, Machine] = {}
        self._copies: dict[str, anyio.Event] = {}
        """Copies under way, by the ids of both volumes of each."""

    async def take(self, machine: Machine) -> None:
        """Before the files of a machine without a VMM are touched: it has these volumes and no
        others. Waits for copies that read or make them.

        Raises StageFailed("disk") when another machine has one; then it has none.
        """
        wanted = volumes_of(machine)
        self.give_back(machine.id)
        await self._no_copy_of(wanted)
        for volume_id in wanted:
            user = self._users.get(volume_id)
            if user is not None and user.id != machine.id:
                raise StageFailed(
                    "disk",
                    f"VM {user.name!r} runs with the volume {volume_id}",
                    suggestion=f"nexus stop {user.name}, then start this one again",
                )
        self.hold(machine, wanted)

    def hold(self, machine: Machine, volume_ids: Iterable[str]) -> None:
        """Notes what a VMM has that runs already."""
        for volume_id in volume_ids:
            self._users[volume_id] = machine

    def give_back(self, vm_id: str) -> None:
        """Once there is no VMM."""
        self._users = {key: user for key, user in self._users.items() if user.id != vm_id}

    async def copy(self, layout: Layout, source_id: str, copy_id: str) -> None:
        """Makes a volume that begins as another one is; done already, it does nothing.

        One that no VM has had yet has no file, and neither has its copy. Raises InUse, or HostFull
        when there is no room; then there is no copy.
        """
        both = {source_id, copy_id}
        await self._no_copy_of(both)
        self._check_unused(source_id)
        source, copy = layout.volume(source_id), layout.volume(copy_id)
        if copy.exists() or not source.exists():
            return
        ended = anyio.Event()
        self._copies |= dict.fromkeys(both, ended)
        try:
            await anyio.to_thread.run_sync(_copy_file, source, copy)
        finally:
            for volume_id in both:
                del self._copies[volume_id]
            ended.set()

    def delete(self, layout: Layout, volume_id: str) -> None:
        """Removes a volume's file. Succeeds when there is none; raises InUse."""
        self._check_unused(volume_id)
        if volume_id in self._copies:
            raise InUse(f"the volume {volume_id} is being copied", suggestion="try again")
        drives.remove_volume(layout.volume(volume_id))

    async def _no_copy_of(self, volume_ids: Iterable[str]) -> None:
        while copies := [self._copies[each] for each in volume_ids if each in self._copies]:
            await copies[0].wait()

    def _check_unused(self, volume_id: str) -> None:
        user = self._users.get(volume_id)
        if user is not None:
            raise InUse(
                f"VM {user.name!r} runs with the volume {volume_id}",
                suggestion=f"nexus stop {user.name}",
            )


def _copy_file(source: Path, copy: Path) -> None:
    try:
        drives.copy_volume(source, copy)
    except OSError as error:
        failed = disk_failure(error, copy.parent).error
        raise HostFull(
            f"the volume cannot be copied: {failed.message}", suggestion=failed.suggestion
        ) from error
    faults.point("after_copy")
