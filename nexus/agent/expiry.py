"""Ending machines whose time is up, whether or not a manager is there to say so."""

from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta

import anyio
import anyio.abc
import structlog

from nexus.agent.attention import Attention
from nexus.agent.layout import Layout
from nexus.api.errors import NexusError
from nexus.api.machines import Machine

LOOK_S = 60.0
"""At the latest: a clock that was set forward is noticed then."""
KEPT = timedelta(days=7)
"""How long it is remembered that a VM was ended."""
AGAIN_S = 5.0
"""When a machine that could not be deleted is tried again."""

log = structlog.get_logger("expiry")


def is_over(machine: Machine, now: datetime) -> bool:
    """Whether the machine's time is up."""
    return machine.expires_at is not None and now >= machine.expires_at


class Ended:
    """The VMs that were ended because their time was up, on disk.

    Somebody may give a VM more time in the moment in which it ends. Made anew it would have that
    time and none of its disks, so it is not: it stays gone until the manager has deleted it.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def note(self, vm_id: str) -> None:
        """Before anything of it is taken away. A full disk is no reason to keep a VM."""
        try:
            self._layout.expired(vm_id).touch()
        except OSError as error:
            log.error("not noted that its time is up", vm=vm_id, error=str(error))

    def has(self, vm_id: str) -> bool:
        return self._layout.expired(vm_id).exists()

    def forget(self, vm_id: str) -> None:
        self._layout.expired(vm_id).unlink(missing_ok=True)

    def forget_old(self, now: datetime) -> None:
        """Those of managers that never asked again."""
        for file in self._layout.expired_dir.iterdir():
            if file.stat().st_mtime < (now - KEPT).timestamp():
                file.unlink(missing_ok=True)


def next_look_s(machines: Iterable[Machine], now: datetime) -> float:
    """How long nothing expires."""
    times = [machine.expires_at for machine in machines if machine.expires_at is not None]
    if not times:
        return LOOK_S
    return min(LOOK_S, max(0.0, (min(times) - now).total_seconds()))


class Expiry:
    """Deletes machines when their time comes. ``run`` must be running in a task."""

    def __init__(
        self, machines: Callable[[], list[Machine]], delete: Callable[[str], Awaitable[None]]
    ) -> None:
        self._machines = machines
        self._delete = delete
        self._ending: set[str] = set()
        self._attention = Attention()

    def look(self) -> None:
        """Some machine's time has changed."""
        self._attention.poke()

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._attention.begin()
                now = datetime.now(UTC)
                waiting = [m for m in self._machines() if m.id not in self._ending]
                for machine in waiting:
                    if is_over(machine, now):
                        self._ending.add(machine.id)
                        tasks.start_soon(self._end, machine)
                left = [m for m in waiting if m.id not in self._ending]
                await self._attention.poked(next_look_s(left, now))

    async def _end(self, machine: Machine) -> None:
        log.info("its time is up", vm=machine.id, expires_at=machine.expires_at)
        try:
            await self._delete(machine.id)
        except NexusError as error:
            log.warning("an expired VM is not gone", vm=machine.id, error=error.message)
            await anyio.sleep(AGAIN_S)
        self._ending.discard(machine.id)
        self.look()
