"""The life of one VM, from the first wish to its last file.

One task owns a machine. Whoever wants something changes ``desired`` and wakes it; it looks at the
facts, asks ``plan`` for the next step, takes it, and looks again until nothing is left to do. Every
step can run twice and can be cut off anywhere: what was begun is in ``status.json`` before it is.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Literal, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from nexus.agent import capture, disks, faults, identity, loading, restarts, starting, tuning
from nexus.agent.atomic import write_atomically
from nexus.agent.attention import Attention
from nexus.agent.capture import Capture, Captures, Taken
from nexus.agent.ending import CONSOLE_LINES, Ending, how_it_ended, last_lines
from nexus.agent.errors import StageFailed, disk_failure
from nexus.agent.identity import KnownAs
from nexus.agent.lacking import ImagesOfOne, Look
from nexus.agent.layout import Layout, SnapshotPaths, VmPaths
from nexus.agent.plan import Seen, Step, plan, restart_at, wants_load, wants_new_root
from nexus.agent.process import Vmm
from nexus.agent.record import Record
from nexus.agent.restarts import FRESH
from nexus.agent.snapshots import Shelf
from nexus.agent.status import status_of
from nexus.agent.tools import Tools
from nexus.agent.tuner import Tuner
from nexus.agent.volumes import volumes_of
from nexus.api.endings import LastExit
from nexus.api.errors import Conflict, NexusError
from nexus.api.machines import Machine, MachineStatus
from nexus.api.origins import Identity, Origin
from nexus.api.snapshots import HostSnapshot, SnapshotOrder
from nexus.api.vms import VmError
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmError, VmmFailure

KILL_TIMEOUT_S = 10.0
API_TIMEOUT_S = 5.0
ASK_AGAIN_S = 1.0
"""A guest that is still booting does not hear Ctrl-Alt-Del, so it is sent until it is down."""
RESUME_AGAIN_S = 1.0
"""A VMM that is busy with a snapshot does not hear that its guest is to go on."""

_NEED_IMAGES = frozenset({Step.PREPARE, Step.START, Step.RESTART})

T = TypeVar("T")

log = structlog.get_logger("machine")


class MachineLife:
    """One VM on this host. Its methods are called from the event loop only."""

    def __init__(
        self,
        desired: Machine,
        record: Record,
        layout: Layout,
        tools: Tools,
        shelf: Shelf,
        publish: Callable[["MachineLife"], None],
        adopted: Vmm | None = None,
    ) -> None:
        self.desired = desired
        self.record = record
        self.vmm = adopted
        self.paused = False
        self.deleting = False
        self.gone = anyio.Event()
        self._tuner = Tuner()
        self._captures = Captures()
        self._taken: str | None = None
        """The last snapshot of this boot, once it was taken whole."""
        self._introducing = False
        self._images = ImagesOfOne(tools.fetcher, tools.store)
        self._layout = layout
        self._tools = tools
        self._shelf = shelf
        self._publish = publish
        self._attention = Attention()
        self._tasks: anyio.abc.TaskGroup | None = None

    @property
    def id(self) -> str:
        return self.desired.id

    @cached_property
    def paths(self) -> VmPaths:
        return self._layout.vm(self.id, jailed=self.record.jailed)

    @property
    def client(self) -> VmmClient:
        pid = self.vmm.pid if self.vmm is not None else None
        return VmmClient(self.paths.socket, timeout_s=API_TIMEOUT_S, server_pid=pid)

    # -- what others ask -------------------------------------------------------------------

    async def ensure(self, desired: Machine) -> MachineStatus:
        """Makes ``desired`` what is wanted, and returns once there is nothing left to do."""
        self.desired = desired
        self._tuner.wake()
        await self._converged()
        return self.status()

    async def delete(self) -> None:
        """Ends the VM and removes all of it; returns when it is gone.

        Raises Conflict when something on the host stands against it; asking again tries again.
        """
        self.deleting = True
        if self.vmm is not None and self.vmm.alive:
            # At once, not after the step that is under way: that one may be waiting for the guest.
            self.record.killed = True
            self._note()
            self.vmm.kill()
        await self._converged()
        if not self.gone.is_set():
            error = self.record.error
            raise Conflict(
                f"the VM cannot be deleted: {error.message if error else 'read the agent log'}",
                suggestion=error.suggestion if error else None,
            )

    @property
    def captures(self) -> Captures:
        return self._captures

    async def capture(self, order: SnapshotOrder, folder: SnapshotPaths) -> Taken:
        """A moment of the VM in that folder, taken between two steps of its life.

        Raises NexusError; then the guest goes on, and what is in the folder is worthless.
        """
        if self.gone.is_set():
            raise capture.no_longer(self.desired)
        with self._captures.asked(order, folder) as asked:
            self.poke()
            return await asked.outcome()

    def snapshot_kept(self, snapshot_id: str) -> None:
        """A snapshot of this VM is on the shelf: a diff may lean on it, if it is the last one."""
        if self._taken == snapshot_id:
            self.record.last_snapshot = snapshot_id
            self._note()

    def poke(self) -> None:
        """Has the machine looked at again."""
        self._attention.poke()

    async def look(self) -> bool:
        """Looks whether the guest is paused: somebody may have done that past us. False when
        there is no VMM that says so."""
        if self.vmm is None or not self.vmm.alive or self.record.phase != "running":
            return False
        try:
            self.paused = (await self.client.describe_instance()).state == "Paused"
        except VmmFailure as error:
            log.warning("no answer from the VMM", vm=self.id, error=error.message)
            return False
        return True

    async def given_power(
        self, power: Literal["running", "paused"], send: Callable[[], Awaitable[T]]
    ) -> T:
        """Has ``send`` pause or resume the guest past us. From now on that is what is wanted: it
        is not taken back at the next look. What ``send`` raises leaves all as it was."""
        async with self._captures.still:
            return await self._given_power(power, send)

    async def _given_power(
        self, power: Literal["running", "paused"], send: Callable[[], Awaitable[T]]
    ) -> T:
        before = self.desired
        if before.power == "stopped":
            return await send()
        self.desired = given = before.model_copy(update={"power": power})
        try:
            answer = await send()
        except BaseException:
            if self.desired is given:
                self.desired = before
            raise
        try:
            write_atomically(self.paths.desired, self.desired.model_dump_json().encode())
        except OSError as error:
            log.error("a wish is not written down", vm=self.id, error=str(error))
        await self.look()
        self._publish(self)
        return answer

    def status(self) -> MachineStatus:
        """What is true now, without waiting for anything."""
        pid = self.vmm.pid if self.vmm is not None else None
        seen, refusal = self._seen(), self._tuner.refusal
        if self.record.capturing is not None and self.desired.power == "running":
            # It stands still for a moment, and nobody asked for that.
            seen = replace(seen, paused=False)
        return status_of(
            self.desired,
            self.record,
            seen,
            self.paths,
            pid=pid,
            refusal=refusal,
            progress=self._images.progress(),
        )

    # -- the task that owns the machine ------------------------------------------------------

    async def run(self) -> None:
        """Lives until the VM is deleted or the agent ends; running VMs outlive both."""
        # Not the request's that happened to be the first to name this VM.
        structlog.contextvars.clear_contextvars()
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            if self.vmm is not None:
                self._hold(self.vmm)
            while not self.gone.is_set():
                waiting = self._attention.begin()
                try:
                    await self._pass()
                finally:
                    if self.vmm is None or not self.vmm.alive:
                        self._tools.volumes.give_back(self.id)
                    for done in waiting:
                        done.set()
                if not self.gone.is_set():
                    await self._attention.poked(self._rest_s())
            tasks.cancel_scope.cancel()
        self._captures.refuse(capture.no_longer(self.desired))
        self._attention.dismiss()

    def _rest_s(self) -> float | None:
        """Until there will be something to do without anybody asking for it."""
        if self.record.capturing is not None:
            return RESUME_AGAIN_S
        due_at = restart_at(self.desired, self._seen())
        return None if due_at is None else max(0.0, (due_at - _now()).total_seconds())

    async def _converged(self) -> None:
        if not self.gone.is_set():
            await self._attention.attended()

    async def _pass(self) -> None:
        try:
            if not self.deleting and await self.look() and self._goes_on():
                self._forget_capture()
            while not self.deleting:
                step = plan(self.desired, self._seen(), _now())
                if step in _NEED_IMAGES and not await self._has_images():
                    break
                if step is not Step.NOTHING:
                    await self._take(step)
                elif not await self._capture_next():
                    break
            if self.deleting:
                self._captures.refuse(capture.no_longer(self.desired))
                await self._delete()
                return
            self._introduce()
        except StageFailed as failed:
            self._fail(failed.error)
            self._captures.refuse(capture.not_now(self.desired, failed.error))
        except Exception as error:
            # One machine's surprise must not take the others' agent down.
            log.exception("unexpected error", vm=self.id)
            surprise = f"an unexpected error: {type(error).__name__}: {error}"
            self._fail(VmError(stage="run", message=surprise, suggestion="read the agent's log"))
            if self.record.error is not None:
                self._captures.refuse(capture.not_now(self.desired, self.record.error))
        self._publish(self)

    def _fail(self, error: VmError) -> None:
        log.warning("machine failed", vm=self.id, stage=error.stage, error=error.message)
        self.record.error = error
        self._note()

    async def _take(self, step: Step) -> None:
        log.debug("step", vm=self.id, step=step.name)
        match step:
            case Step.PREPARE:
                await self._prepare()
            case Step.START:
                await self._start()
            case Step.RESTART:
                await self._restart()
            case Step.AWAIT_API:
                await self._await_api()
            case Step.PAUSE:
                await self._set_paused(True)
            case Step.RESUME:
                await self._set_paused(False)
            case Step.TUNE:
                await self._tune()
            case Step.ASK_STOP:
                await self._ask_stop()
            case Step.AWAIT_EXIT:
                await self._await_exit()
            case Step.KILL:
                await self._kill()
            case Step.SETTLE:
                await self._settle()
            case Step.SHED:
                await self._shed()
            case Step.NOTHING:
                return
        self._publish(self)

    def _seen(self) -> Seen:
        return Seen(
            phase=self.record.phase,
            boot=self.record.boot,
            alive=self.vmm is not None and self.vmm.alive,
            paused=self.paused,
            stop_asked_at=self.record.stop_asked_at,
            tuned=self._tuner.has_nothing_to_say(self.desired, self.record),
            exit_cause=self.record.exit_cause,
            restarts=self.record.restarts,
            laden=bool(set(self.record.volumes) - volumes_of(self.desired)),
        )

    def _save(self) -> None:
        """Writes down what is about to be done. Raises StageFailed("disk"): then it is not."""
        try:
            self.record.save(self.paths)
        except OSError as error:
            raise disk_failure(error, self.paths.dir) from error

    def _note(self) -> None:
        """Writes down what was done or seen. On a full disk a restart has to find it out again."""
        try:
            self.record.save(self.paths)
        except OSError as error:
            log.error("what was seen is not written down", vm=self.id, error=str(error))

    # -- the steps, in the order of a life ---------------------------------------------------

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

    async def _shed(self) -> None:
        """Lets go of volumes that it shall not have any more, so that their space is their own."""
        desired = self.desired
        await anyio.to_thread.run_sync(disks.shed_drives, desired, self.paths)
        faults.point("after_shed")
        self.record.volumes = sorted(set(self.record.volumes) & volumes_of(desired))
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
        if wants_load(self.desired, self.record.boot):
            await self._load()
        else:
            await self._boot()

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
        self.record = self._record_of_boot()
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
        self.record = record
        await self._launch(begun, time.perf_counter())

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
        snapshot = self._shelf.find(record.loaded_from or "")
        if snapshot is None:
            raise loading.gone(record.loaded_from or "")
        folder, disks_too = self._shelf.paths(snapshot.id), record.placing is not None
        await loading.make_ready(
            self.desired, snapshot, folder, self.paths, self._tools, record.uid, disks=disks_too
        )
        if disks_too:
            # Before the guest writes to them: from then on they are not replaced any more.
            record.placed, record.placing = record.placing, None
            self._save()

    async def _undo_load(self) -> None:
        """What the host lacked for this boot it may have when it is asked for again."""
        await self._kill()
        self.vmm, record = None, self.record
        disks.after_exit(self.paths)
        await self._tools.network.remove_taps(self.id)
        record.boot, record.phase, record.killed = record.boot - 1, "configured", False
        record.pid = record.start_ticks = record.identity = record.loaded_from = None
        self._note()

    def _record_of_boot(self) -> Record:
        record = self.record
        return Record(
            engine=record.engine,
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
        record, paths = self.record, self.paths
        self._tuner.begin()
        self._taken = record.last_snapshot
        self._save()
        faults.point("before_spawn")
        try:
            vmm = starting.launch(record, paths, self._tools)
        except StageFailed:
            record.phase = "ended"
            record.exited_at = _now()
            record.exit_cause = "crashed"
            await self._tools.network.remove_taps(self.id)
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

    async def _restart(self) -> None:
        """The boot that ended by itself once more, also one that was loaded: from its disks. Its
        TAPs may still be there."""
        record = self.record
        record.restarts = restarts.before_attempt(record.restarts, _now())
        log.info("machine restarts", vm=self.id, boot=record.boot, restarts=record.restarts.count)
        await self._boot()

    def _hold(self, vmm: Vmm) -> None:
        """Takes charge of a live VMM: remembers it and watches for its end."""
        if self._tasks is None:
            raise RuntimeError("a machine that does not run holds no VMM")
        self.vmm = vmm
        self.record.pid = vmm.pid
        self.record.start_ticks = vmm.start_ticks
        self._tasks.start_soon(self._watch, vmm)

    async def _watch(self, vmm: Vmm) -> None:
        await vmm.watch()
        self.poke()

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
        await self._settle()
        self.record.exit_cause = "crashed"

    async def _set_paused(self, paused: bool) -> None:
        client = self.client
        try:
            await (client.pause() if paused else client.resume())
        except VmmFailure as error:
            if not self._held().alive:
                return
            verb = "paused" if paused else "resumed"
            raise StageFailed(
                "run",
                f"the VM cannot be {verb}: {error.message}",
                fault_message=error.fault_message if isinstance(error, VmmError) else None,
                suggestion=error.suggestion,
            ) from error
        self.paused = paused
        if self.record.error is not None:
            self.record.error = None
            self._note()
        if self._goes_on():
            self._forget_capture()

    async def _tune(self) -> None:
        rest_s = await self._tuner.tell(self.desired, self.record, self.paths, self.client)
        if rest_s is not None and self._held().alive and self._tasks is not None:
            self._tasks.start_soon(self._look_again, rest_s)
        faults.point("after_tune")
        self._save()

    async def _look_again(self, after_s: float) -> None:
        await anyio.sleep(after_s)
        self.poke()

    # -- snapshots and what comes of them ----------------------------------------------------

    async def _capture_next(self) -> bool:
        """Carries out an order to capture the guest; False when there is none."""
        asked = self._captures.next()
        if asked is None:
            return False
        with asked.answering(self.desired):
            asked.taken = await self._capture(asked)
        return True

    async def _capture(self, asked: Capture) -> Taken:
        record, desired, order = self.record, self.desired, asked.order
        capture.check(order, desired, record, runs=self._runs())
        capture.check_room(order, desired, asked.folder.dir)
        paused, applied = self.paused, record.told == tuning.wanted(desired)
        # What changed since an earlier one is known no more once the VMM begins.
        record.capturing, record.last_snapshot, self._taken = order.id, None, None
        self._save()
        faults.point("capture_begun")
        async with self._captures.still:
            try:
                at, pause_ms = await capture.take(
                    asked, desired, self.paths, self._tools, self.client, paused=paused
                )
            finally:
                if not asked.stands:
                    self._forget_capture()
        self._taken = order.id
        log.info("captured", vm=self.id, snapshot=order.id, kind=order.kind, pause_ms=pause_ms)
        machine = record.known_as.machine(desired) if record.known_as else desired
        version = self._tools.engine_version
        return Taken(order, machine, record.engine, version, applied, pause_ms, at)

    def _goes_on(self) -> bool:
        """Whether the guest, as it was seen, does not stand still against anybody's wish."""
        held = self.paused and self.desired.power == "running"
        return self.record.capturing is not None and not held

    def _forget_capture(self) -> None:
        """The guest goes on as it did before it was captured."""
        self.record.capturing = None
        disks.clear_captured(self.paths)
        self._note()

    def _introduce(self) -> None:
        """Has a guest that was loaded told who it is, once it runs. Nobody waits for that."""
        record = self.record
        waits = record.identity is not None and record.identity.state == "pending"
        if not waits or not self._runs() or self.paused or self._introducing:
            return
        if self._tasks is not None and record.known_as is not None:
            self._introducing = True
            self._tasks.start_soon(self._tell_identity, record, record.known_as)

    async def _tell_identity(self, record: Record, known_as: KnownAs) -> None:
        try:
            told = await identity.tell(
                self.paths.vsock, self.desired, known_as, self._captures.still
            )
        finally:
            self._introducing = False
        if record is self.record and not (self.paused and told.state != "applied"):
            record.identity = told
            if told.state == "applied":
                record.known_as = None
            self._note()
            log.info("identity", vm=self.id, state=told.state, message=told.message)
            self._publish(self)

    def _runs(self) -> bool:
        return self.vmm is not None and self.vmm.alive and self.record.phase == "running"

    # -- the end of a boot, and of the VM ----------------------------------------------------

    async def _ask_stop(self) -> None:
        """Ctrl-Alt-Del, which the guest takes as a wish to power off. A paused one is resumed."""
        self.record.stop_asked_at = _now()
        self._note()
        self._publish(self)
        try:
            if self.paused:
                await self.client.resume()
                self.paused = False
            await self.client.send_ctrl_alt_del()
        except VmmError as error:
            # The guest's keyboard is not ready, or it has left earlier keys unread.
            log.info("the guest does not take Ctrl-Alt-Del yet", vm=self.id, error=error.message)
        except VmmFailure as error:
            if self._held().alive:
                log.warning("cannot be asked to stop; killing", vm=self.id, error=error.message)
                await self._kill()

    async def _await_exit(self) -> None:
        """Until the guest is down, the time is up, or somebody wants something else."""
        asked_at = self.record.stop_asked_at or _now()
        while self._held().alive and not self.deleting:
            # Read anew each time: whoever loses patience shortens it.
            deadline = asked_at + timedelta(seconds=self.desired.stop_timeout_s)
            left_s = (deadline - _now()).total_seconds()
            if left_s <= 0 or await self._attention.next_poke(min(left_s, ASK_AGAIN_S)):
                return
            with anyio.move_on_after(left_s), contextlib.suppress(VmmFailure):
                await self.client.send_ctrl_alt_del()

    async def _kill(self) -> None:
        vmm = self._held()
        self.record.killed = True
        self._note()
        vmm.kill()
        faults.point("after_kill")
        with anyio.move_on_after(KILL_TIMEOUT_S) as waiting:
            await vmm.exited.wait()
        if waiting.cancelled_caught:
            raise StageFailed(
                "run",
                f"the VMM (pid {vmm.pid}) does not end although it was killed",
                suggestion=f"look at /proc/{vmm.pid}/stack on the host: its disk may hang",
            )

    async def _settle(self) -> None:
        """Writes down how the VMM ended and clears up: TAPs and socket go, the disk stays."""
        record, paths = self.record, self.paths
        if record.phase == "starting" and record.pid is None and not paths.socket.exists():
            # The agent died between the intention and the deed: this boot never was.
            if record.restarts.ran and record.last_exit is not None:
                record.restarts = restarts.undone(record.restarts, _now())
                record.phase, record.exit_cause = "ended", record.last_exit.cause
            else:
                record.boot -= 1
                record.phase = "configured"
            self._save()
            return
        vmm, self.vmm, self.paused = self.vmm, None, False
        if vmm is not None:
            await vmm.exited.wait()
        ending: Ending = how_it_ended(
            started=record.phase == "running",
            stop_asked=record.stop_asked_at is not None,
            killed=record.killed,
            exit_code=vmm.exit_code if vmm is not None else None,
            vmm_log=last_lines(paths.vmm_log),
            console=last_lines(paths.console_log, CONSOLE_LINES, since=record.console_offset),
            name=self.desired.name,
        )
        await anyio.to_thread.run_sync(disks.after_exit, paths)
        record.phase = "ended"
        record.pid = record.start_ticks = record.stop_asked_at = None
        record.capturing = record.last_snapshot = None
        record.exited_at = now = _now()
        record.exit_cause = ending.cause
        record.error = ending.error
        record.last_exit = LastExit(at=now, cause=ending.cause, message=ending.message)
        ran_for = now - (record.started_at or now)
        record.restarts = restarts.after_end(record.restarts, ran_for, now)
        self._note()
        log.info("machine ended", vm=self.id, boot=record.boot, cause=ending.cause)
        self._publish(self)
        if plan(self.desired, self._seen(), now) is not Step.RESTART:
            await self._tools.network.remove_taps(self.id)

    async def _delete(self) -> None:
        """Everything goes. From the renaming on, a restart finishes it without the VM's files."""
        if self.vmm is not None and self.vmm.alive:
            await self._kill()
        trash = self._layout.trash(self.id)
        if self.paths.dir.exists():
            await anyio.to_thread.run_sync(disks.remove_tree, trash)
            self.paths.dir.rename(trash)
        faults.point("after_trash")
        await self._tools.network.remove_taps(self.id)
        await anyio.to_thread.run_sync(disks.remove_tree, trash)
        log.info("machine deleted", vm=self.id)
        self.gone.set()

    def _origin(self) -> Origin:
        if self.desired.origin is None:
            raise RuntimeError("this step needs an origin")
        return self.desired.origin

    def _held(self) -> Vmm:
        if self.vmm is None:
            raise RuntimeError("this step needs a VMM")
        return self.vmm


def _now() -> datetime:
    return datetime.now(UTC)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
