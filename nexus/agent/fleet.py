"""All machines of this host: found again at start, wanted, deleted."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from nexus.agent import capture, disks, faults, lacking, loading, process
from nexus.agent.atomic import write_atomically
from nexus.agent.blanks import Blanks
from nexus.agent.command import choose_jail_uid
from nexus.agent.errors import (
    Expired,
    HostFull,
    NetworkFailed,
    StaleGeneration,
    disk_failure,
)
from nexus.agent.events import Feed
from nexus.agent.expiry import Ended, Expiry, is_over
from nexus.agent.layout import Layout
from nexus.agent.machine import MachineLife
from nexus.agent.machine_body import Body
from nexus.agent.plan import wants_load
from nexus.agent.record import Record, load_desired, load_record
from nexus.agent.snapshots import Shelf
from nexus.agent.tools import Tools
from nexus.api.errors import Conflict, InUse, NexusError, NotFound
from nexus.api.machines import Machine, MachineStatus
from nexus.api.snapshots import HostSnapshot, SnapshotOrder

log = structlog.get_logger("fleet")


class Fleet:
    """The machines by id. Lives inside ``Fleet.open``."""

    def __init__(self, layout: Layout, tools: Tools, feed: Feed, tasks: anyio.abc.TaskGroup):
        self.layout = layout
        self.tools = tools
        self.feed = feed
        self._tasks = tasks
        self._machines: dict[str, MachineLife] = {}
        self.shelf = Shelf(layout)
        self._blanks = Blanks(layout)
        self._expiry = Expiry(self._wanted, self._expire)
        self._ended = Ended(layout)

    @classmethod
    @asynccontextmanager
    async def open(cls, layout: Layout, tools: Tools, feed: Feed) -> AsyncIterator["Fleet"]:
        """Takes up what an earlier agent left, and lets go of it at the end: VMs keep running."""
        async with anyio.create_task_group() as tasks:
            fleet = cls(layout, tools, feed, tasks)
            await fleet._take_up()
            tasks.start_soon(fleet._expiry.run)
            tasks.start_soon(fleet._blanks.run)
            if tools.fetcher is not None:
                tasks.start_soon(tools.fetcher.run, fleet._contents)
            yield fleet
            tasks.cancel_scope.cancel()

    # -- what the manager asks -----------------------------------------------------------------

    async def ensure(self, desired: Machine) -> MachineStatus:
        """Makes the machine so; returns when there is nothing left to do for it.

        Raises StaleGeneration when a newer one is known, Expired when its time is up, and for a
        machine that runs what ``loading.loadable`` raises when a snapshot does not fit, Conflict
        when it is deleted meanwhile.
        """
        machine = self._machines.get(desired.id)
        while machine is not None and machine.deleting:
            await machine.delete()
            self._forget(machine)
            machine = self._machines.get(desired.id)
        if machine is not None and desired.generation < machine.desired.generation:
            raise StaleGeneration(
                f"generation {desired.generation} is older than {machine.desired.generation}, "
                "which this host already has",
                suggestion="read the VM again and send its current generation",
            )
        if machine is None and self._ended.has(desired.id):
            raise _no_time_left(desired)
        if is_over(desired, datetime.now(UTC)):
            if machine is not None:
                self._ended.note(desired.id)
            await self._remove(desired.id)
            raise Expired(
                f"the time of VM {desired.id} was up at {desired.expires_at}",
                suggestion="compare the clocks of manager and host (timedatectl)",
            )
        if machine is not None and machine.status().pid is not None:
            # Before the wish is taken up: what runs now is not ended for a snapshot that cannot
            # be loaded.
            seen = machine.desired
            await self._check_load(machine, desired)
            if machine.deleting or machine.gone.is_set():
                raise self._ended_meanwhile(desired)
            if machine.desired is not seen:
                # That may have taken minutes: it is judged anew by what is wanted since.
                return await self.ensure(desired)
        if machine is None:
            machine = self._begin(desired)
        elif desired != machine.desired:
            try:
                self._remember(desired)
            except OSError as error:
                # On a full disk VMs must stop all the same. After a restart the older wish starts
                # nothing that ended, and the manager sends this one again.
                log.error("a wish is not written down", vm=desired.id, error=str(error))
            try:
                self.tools.network.rename(desired)
            except NetworkFailed as error:
                log.error("a name is not told to its network", vm=desired.id, error=error.message)
        faults.point("after_desired")
        if desired.expires_at is not None:
            self._expiry.look()
        return await machine.ensure(desired)

    def _ended_meanwhile(self, desired: Machine) -> NexusError:
        if self._ended.has(desired.id):
            return _no_time_left(desired)
        return Conflict(
            f"VM {desired.name!r} was deleted while it was to become another",
            suggestion="nexus ls",
        )

    async def _check_load(self, machine: MachineLife, desired: Machine) -> None:
        if desired.origin is not None and wants_load(desired, machine.record.boot):
            engine = machine.record.engine if machine.record.jailed else self.tools.engine
            await loading.loadable(self.shelf, desired.origin, desired, self.tools, engine)

    async def delete(self, vm_id: str) -> None:
        """Removes the machine and all that belongs to it. Succeeds when there is none."""
        await self._remove(vm_id)
        self._ended.forget(vm_id)

    async def _expire(self, vm_id: str) -> None:
        """Removes a machine whose time is up, unless it has been given more at the last moment."""
        machine = self._machines.get(vm_id)
        if machine is not None and is_over(machine.desired, datetime.now(UTC)):
            self._ended.note(vm_id)
            await self._remove(vm_id)

    async def _remove(self, vm_id: str) -> None:
        machine = self._machines.get(vm_id)
        if machine is not None:
            await machine.delete()
            self._forget(machine)

    def delete_volume(self, volume_id: str) -> None:
        """Removes a volume's file. Succeeds when there is none; raises InUse."""
        # Also one that does not run: its next start would make the volume anew, and empty.
        for machine in self._machines.values():
            if any(drive.volume == volume_id for drive in machine.desired.drives):
                raise InUse(
                    f"VM {machine.desired.name!r} has the volume {volume_id}",
                    suggestion=f"nexus rm {machine.desired.name}",
                )
        self.tools.volumes.delete(self.layout, volume_id)

    async def copy_volume(self, source_id: str, copy_id: str) -> None:
        """Makes a volume that begins as another one is. Raises InUse, HostFull."""
        await self.tools.volumes.copy(self.layout, source_id, copy_id)

    async def capture(self, order: SnapshotOrder) -> HostSnapshot:
        """The snapshot of a VM; returns when it is whole and durable, or was before.

        Raises NotFound, Conflict, InvalidState or HostFull; then there is nothing of it.
        """
        if (kept := self.shelf.find(order.id)) is not None:
            return _same(kept, order)  # its VM may be gone since
        machine = self.get(order.vm_id)
        async with machine.captures.turn:
            if (kept := self.shelf.find(order.id)) is not None:
                return _same(kept, order)
            with self.shelf.making(order.id, order.parent_id) as folder:
                base = machine.base_of(order)
                fits = base is not None and capture.tells_pages(folder.dir)
                if base is None or not fits or not await self.shelf.lay_under(base, folder):
                    base = None
                async with machine.capture_files() as files:
                    taken = await machine.capture(order, folder, files, base)
                    seal = partial(capture.seal, taken, folder, files)
                    kept = await self.shelf.keep(order.id, seal)
        machine.snapshot_kept(order.id)
        return kept

    def get(self, vm_id: str) -> MachineLife:
        """Raises NotFound."""
        machine = self._machines.get(vm_id)
        if machine is None or machine.deleting:
            raise NotFound(f"this host has no VM {vm_id}", suggestion="nexus ls")
        return machine

    def _wanted(self) -> list[Machine]:
        return [machine.desired for machine in self._machines.values()]

    def _contents(self) -> set[str]:
        """The contents of images that a VM of this host is made of."""
        return {
            blob.sha256
            for machine in self._machines.values()
            for _, blob in lacking.contents(machine.desired)
        }

    def statuses(self) -> list[MachineStatus]:
        return [machine.status() for machine in self._machines.values()]

    # -- beginning and ending --------------------------------------------------------------------

    def _begin(self, desired: Machine) -> MachineLife:
        jailed = self.tools.jailer is not None
        taken = {m.record.uid for m in self._machines.values() if m.record.uid is not None}
        record = Record(
            engine=self.tools.engine,
            jailed=jailed,
            uid=choose_jail_uid(desired.id, taken) if jailed else None,
        )
        machine = MachineLife(desired, record, self.layout, self.tools, self.shelf, self._publish)
        folder = machine.paths.dir
        try:
            if not self._blanks.become(machine.paths, record, desired):
                folder.mkdir(mode=0o700, exist_ok=True)
                # The status first: a directory with a wish in it always says how it is laid out.
                record.save(machine.paths)
                self._remember(desired)
        except OSError as error:
            disks.remove_tree(folder)
            failed = disk_failure(error, folder).error
            raise HostFull(
                f"the VM cannot be written down: {failed.message}", suggestion=failed.suggestion
            ) from error
        self._add(machine)
        return machine

    def _remember(self, desired: Machine) -> None:
        write_atomically(
            self.layout.vm(desired.id).desired, desired.model_dump_json(exclude_none=False).encode()
        )

    def _add(self, machine: MachineLife) -> None:
        self._machines[machine.id] = machine
        self._tasks.start_soon(self._own, machine)

    async def _own(self, machine: MachineLife) -> None:
        await machine.run()
        if machine.gone.is_set():
            self._forget(machine)

    def _forget(self, machine: MachineLife) -> None:
        if self._machines.get(machine.id) is machine:
            del self._machines[machine.id]
            self.feed.gone(machine.id)

    def _publish(self, machine: Body) -> None:
        self.feed.status(machine.status())

    # -- after a restart -------------------------------------------------------------------------

    async def _take_up(self) -> None:
        """Finishes deletions, finds living VMMs, and lets every machine go on where it was."""
        self.layout.prepare()
        self._ended.forget_old(datetime.now(UTC))
        await anyio.to_thread.run_sync(self.shelf.take_up)
        await self.tools.network.restore(self._remembered(), self._tasks)
        for vm_id in self.layout.trashed_ids():
            await self.tools.network.remove_taps(vm_id)
            await anyio.to_thread.run_sync(disks.remove_tree, self.layout.trash(vm_id))
        running = process.vmm_pids()
        async with anyio.create_task_group() as each:
            for vm_id in self.layout.vm_ids():
                each.start_soon(self._take_up_one, vm_id, running.get(vm_id, []))
        orphans = await self.tools.network.remove_orphans(self.layout.vm_ids())
        log.info("taken up", vms=len(self._machines), orphan_taps=orphans)

    def _remembered(self) -> Iterator[Machine]:
        for vm_id in self.layout.vm_ids():
            # One that is damaged is told of when it is taken up.
            with suppress(ValueError):
                desired = load_desired(self.layout.vm(vm_id).desired)
                if desired is not None:
                    yield desired

    async def _take_up_one(self, vm_id: str, pids: list[int]) -> None:
        paths = self.layout.vm(vm_id)
        try:
            desired, record = load_desired(paths.desired), load_record(paths.status)
        except ValueError as error:
            # Left as it is, for a person to look at: it may hold the only copy of a disk.
            log.error("a VM cannot be taken up", vm=vm_id, error=str(error))
            return
        if desired is None or record is None:
            # Cut off before the wish was written: nothing was done for it.
            await anyio.to_thread.run_sync(disks.remove_tree, paths.dir)
            return
        paths = self.layout.vm(vm_id, jailed=record.jailed)
        # Up to here nothing waits: no machine goes on before all living VMMs hold their volumes.
        vmm = next((v for pid in pids if (v := process.adopt(pid, paths.root))), None)
        if vmm is None:
            await self.tools.network.remove_taps(vm_id)
        else:
            self.tools.volumes.hold(desired, record.volumes)
            if record.phase not in ("starting", "running"):
                record.phase = "starting"
        machine = MachineLife(
            desired, record, self.layout, self.tools, self.shelf, self._publish, vmm
        )
        # Before anybody asks: its first answer is what is, not what was being found out.
        await machine.look()
        self._add(machine)


def _no_time_left(desired: Machine) -> Expired:
    return Expired(
        f"the time of VM {desired.id} was up before it was given more",
        suggestion="it is gone with its disks: delete it, and make another one",
    )


def _same(kept: HostSnapshot, order: SnapshotOrder) -> HostSnapshot:
    if (kept.vm_id, kept.kind, kept.parent_id) != (order.vm_id, order.kind, order.parent_id):
        raise Conflict(
            f"this host has another snapshot {order.id}", suggestion="give this one its own id"
        )
    return kept
