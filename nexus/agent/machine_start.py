"""How a boot of a VM begins: from its disks, or from a snapshot."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from nexus.agent import disks, faults, loading, restarts, starting, tuning
from nexus.agent.counts import Way
from nexus.agent.ending import last_lines
from nexus.agent.errors import StageFailed
from nexus.agent.identity import KnownAs
from nexus.agent.lacking import Look
from nexus.agent.machine_end import KILL_TIMEOUT_S, Ended
from nexus.agent.plan import wants_load, wants_new_root
from nexus.agent.process import Vmm
from nexus.agent.record import Record
from nexus.agent.restarts import FRESH
from nexus.agent.volumes import volumes_of
from nexus.api.errors import NexusError
from nexus.api.machines import Machine
from nexus.api.origins import Identity, Origin
from nexus.api.snapshots import HostSnapshot

log = structlog.get_logger("machine")


class Begun(Ended):
    """A VM that can be started: the steps until there is a guest."""

    async def _has_images(self) -> bool:
        """Whether every image is on this host; those that are not are being fetched then.

        Raises StageFailed("disk").
        """
        if self._tasks is None:
            return True
        look = Look(self.desired, self.paths, self._attention, self._tasks)
        return await self._images.are_here(look, lambda: self._publish(self))

    async def _take_volumes(self, desired: Machine) -> None:
        """Before their names are made in its root: a volume has one user."""
        await self._tools.volumes.take(desired)
        if new := volumes_of(desired) - set(self.record.volumes):
            self.record.volumes = sorted(new.union(self.record.volumes))
            self._save()

    async def _prepare(self) -> None:
        desired, origin = self.desired, self.desired.origin
        await self._take_volumes(desired)
        if origin is not None:
            await self._place(origin, await self._loadable(origin))
        else:
            await starting.ensure_files(desired, self.paths, self._tools, self.record.uid)
        self.record.phase = "configured"
        self.record.configured_at = _now()
        self.record.error = None
        self._save()

    async def _start(self) -> None:
        way: Way = "load" if wants_load(self.desired, self.record.boot) else "boot"
        with self._counted(way):
            await (self._load() if way == "load" else self._boot())

    @contextmanager
    def _counted(self, way: Way) -> Iterator[None]:
        """Counts a start, whichever way it ends; but not one that the agent's own end cuts off."""
        begun, counts = time.perf_counter(), self._tools.counts
        try:
            yield
        except Exception:
            counts.started(way, time.perf_counter() - begun, runs=False)
            raise
        counts.started(way, time.perf_counter() - begun, runs=self.record.phase == "running")

    async def _boot(self) -> None:
        begun = time.perf_counter()
        record, paths, desired = self.record, self.paths, self.desired
        if not record.jailed:
            record.engine = self._tools.engine
        await self._take_volumes(desired)
        missing = record.placing or (desired.origin if record.configured_at is None else None)
        if missing is not None:
            # A load that was cut off, or never tried: what the VM has is not its disks.
            await self._place(missing, await self._loadable(missing))
        new_root = wants_new_root(desired, record.root_boot)
        await starting.prepare(desired, paths, self._tools, record.uid, new_root=new_root)
        prepared = time.perf_counter()
        self.record, self._unloaded = self._record_of_boot(), None
        self.record.told = tuning.wanted(desired)
        await self._launch(begun, prepared)

    async def _load(self) -> None:
        """The boot that is a snapshot's: its VMM starts while disks and TAPs are made ready."""
        begun = time.perf_counter()
        desired, origin = self.desired, self._origin()
        if not self.record.jailed:
            self.record.engine = self._tools.engine
        await self._take_volumes(desired)
        snapshot = await self._loadable(origin)
        starting.check_memory(desired.mem_mib, starting.host_memory_mib())
        disks.before_load(self.paths, self.record.uid)
        record = self._record_of_boot()
        if record.placed != origin:
            record.placing = origin
        record.loaded_from = snapshot.id
        record.known_as = KnownAs.of(snapshot)
        record.identity = Identity(state="pending")
        record.told = loading.told(snapshot)
        record.last_snapshot = snapshot.id if record.tracks else None
        self.record, self._unloaded = record, self.record
        await self._launch(begun, time.perf_counter())

    def _origin(self) -> Origin:
        if self.desired.origin is None:
            raise RuntimeError("this step needs an origin")
        return self.desired.origin

    async def _loadable(self, origin: Origin) -> HostSnapshot:
        """Raises StageFailed."""
        try:
            return await loading.loadable(
                self._shelf, origin, self.desired, self._tools, self.record.engine
            )
        except NexusError as error:
            raise loading.failed(error) from error

    async def _place(self, origin: Origin, snapshot: HostSnapshot) -> None:
        """The snapshot's disks become the VM's, which does not run."""
        folder = self._shelf.paths(snapshot.id)
        place = partial(loading.place, self.desired, snapshot, folder, self.paths, self.record.uid)
        await anyio.to_thread.run_sync(place)
        self.record.placed, self.record.placing = origin, None

    async def _make_ready(self) -> None:
        """What a VMM needs that is to load. Raises StageFailed."""
        record = self.record
        placing = loading.Placing() if record.placing is not None else None
        try:
            snapshot = self._shelf.find(record.loaded_from or "")
            if snapshot is None:
                raise loading.gone(record.loaded_from or "")
            folder = self._shelf.paths(snapshot.id)
            await loading.make_ready(
                self.desired, snapshot, folder, self.paths, self._tools, record.uid, placing
            )
        finally:
            self._placed_so_far(placing)
        if placing is not None:
            # Before the guest writes to them: from then on they are not replaced any more.
            self._save()

    def _placed_so_far(self, placing: loading.Placing | None) -> None:
        record = self.record
        if placing is None or not placing.begun:
            return
        self._unloaded = None
        if placing.done:
            record.placed, record.placing = record.placing, None

    def _spare_disks(self) -> None:
        """A load is over that touched no disk: what the VM has is what it had before."""
        before, self._unloaded = self._unloaded, None
        if before is not None:
            self.record.placing = before.placing
            self.record.configured_at = before.configured_at
            self.record.root_boot = before.root_boot

    async def _undo_load(self) -> None:
        """What the host lacked for this boot it may have when it is asked for again."""
        vmm, record = self._held(), self.record
        # Its end is no reason to look at once, and to try it again.
        self.vmm = None
        vmm.kill()
        with anyio.move_on_after(KILL_TIMEOUT_S):
            await vmm.exited.wait()
        self._tools.counts.ended("killed", asked=self.deleting)
        disks.after_exit(self.paths)
        await self._tools.network.remove_taps(self.id)
        record.boot, record.phase = record.boot - 1, "configured"
        record.pid = record.identity = record.loaded_from = None
        self._spare_disks()
        self._note()

    def _record_of_boot(self) -> Record:
        record = self.record
        return Record(
            engine=record.engine,
            engine_version=self._tools.engine_version,
            jailed=record.jailed,
            uid=record.uid,
            phase="starting",
            boot=self.desired.boot,
            console_offset=self.paths.console_log.stat().st_size,
            configured_at=record.configured_at or _now(),
            volumes=sorted(volumes_of(self.desired)),
            restarts=record.restarts if self.desired.boot == record.boot else FRESH,
            last_exit=record.last_exit,
            tracks=self.desired.track_dirty_pages,
            placing=record.placing,
            placed=record.placed,
            root_boot=self._root_boot(),
        )

    def _root_boot(self) -> int:
        """What is noted of the root disk, with the boot that begins now."""
        new_root = wants_new_root(self.desired, self.record.root_boot)
        return self.desired.root_boot or 0 if new_root else self.record.root_boot

    async def _launch(self, begun: float, prepared: float) -> None:
        """Spawns the VMM of the boot that the record tells of, and waits for its guest."""
        record = self.record
        self._tuner.begin()
        self._taken = record.last_snapshot
        try:
            self._save()
            faults.point("before_spawn")
            vmm = await self._spawn()
        except StageFailed:
            self._spare_disks()
            raise
        faults.point("after_spawn")
        self._hold(vmm)
        self._note()
        self._publish(self)
        spawned = time.perf_counter()
        await self._await_api(fresh=True)
        log.info(
            "machine started" if record.phase == "running" else "machine did not start",
            vm=self.id,
            boot=record.boot,
            pid=vmm.pid,
            snapshot=record.loaded_from,
            prepare_ms=_ms(prepared - begun),
            spawn_ms=_ms(spawned - prepared),
            api_ms=_ms(time.perf_counter() - spawned),
        )

    async def _spawn(self) -> Vmm:
        record = self.record
        try:
            return starting.launch(record, self.paths, self._tools)
        except StageFailed:
            record.phase = "ended"
            record.exited_at = _now()
            record.exit_cause = "crashed"
            await self._tools.network.remove_taps(self.id)
            raise

    async def _restart(self) -> None:
        """The boot that ended by itself once more, also one that was loaded: from its disks. Its
        TAPs may still be there."""
        record = self.record
        record.restarts = restarts.before_attempt(record.restarts, _now())
        log.info("machine restarts", vm=self.id, boot=record.boot, restarts=record.restarts.count)
        with self._counted("boot"):
            await self._boot()

    async def _await_api(self, *, fresh: bool = False) -> None:
        """Until the VMM says that the guest runs. One that dies first is left to SETTLE."""
        try:
            paused = await self._guest_is_paused(fresh=fresh)
        except starting.NoAnswer as error:
            await self._give_up()
            raise StageFailed(
                "boot",
                f"the VMM does not answer: {error}",
                suggestion=f"nexus logs {self.desired.name} --source vmm",
                log_tail=last_lines(self.paths.vmm_log),
            ) from error
        except StageFailed as failed:
            refused = failed.error.stage == "configure"
            await (self._give_up() if refused else self._undo_load())
            raise
        if paused is None:
            return
        self.paused = paused
        self.record.phase = "running"
        self.record.started_at = _now()
        self.record.error = None
        self.record.restarts = restarts.after_start(self.record.restarts)
        self._note()
        faults.point("after_running")

    async def _guest_is_paused(self, *, fresh: bool) -> bool | None:
        """Once there is a guest; None for a VMM that ended before."""
        if self.record.loaded_from is None:
            info = await starting.until_guest_runs(
                self._held(), self.record, self.paths, self.client
            )
            return None if info is None else info.state == "Paused"
        paused = await loading.load(
            self.desired, self._held(), self.client, self._make_ready, fresh=fresh
        )
        loading.unlink_memory(self.paths)
        return paused

    async def _give_up(self) -> None:
        """Ends a VMM of no use. Nobody asked for this end: the restart policy has its say."""
        await self._kill()
        await self._settle(asked=False)
        self.record.exit_cause = "crashed"


def _now() -> datetime:
    return datetime.now(UTC)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
