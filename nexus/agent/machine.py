"""The life of one VM, from the first wish to its last file.

One task owns a machine. Whoever wants something changes ``desired`` and wakes it; it looks at the
facts, asks ``plan`` for the next step, takes it, and looks again until nothing is left to do. Every
step can run twice and can be cut off anywhere: what was begun is in ``status.json`` before it is.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from nexus.agent import disks, faults, restarts, starting, tuning
from nexus.agent.atomic import write_atomically
from nexus.agent.attention import Attention
from nexus.agent.ending import CONSOLE_LINES, Ending, how_it_ended, last_lines
from nexus.agent.errors import StageFailed, disk_failure
from nexus.agent.layout import Layout, VmPaths, tap_name
from nexus.agent.plan import Seen, Step, plan, restart_at, state_of
from nexus.agent.process import Vmm
from nexus.agent.record import Record
from nexus.agent.restarts import FRESH
from nexus.agent.tools import Tools
from nexus.api.endings import LastExit
from nexus.api.errors import Conflict
from nexus.api.machines import Machine, MachineNicStatus, MachineStatus
from nexus.api.vms import VmError
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmError, VmmFailure

KILL_TIMEOUT_S = 10.0
API_TIMEOUT_S = 5.0
ASK_AGAIN_S = 1.0
"""A guest that is still booting does not hear Ctrl-Alt-Del, so it is sent until it is down."""

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
        publish: Callable[["MachineLife"], None],
        adopted: Vmm | None = None,
    ) -> None:
        self.desired = desired
        self.record = record
        self.vmm = adopted
        self.paused = False
        self.deleting = False
        self.gone = anyio.Event()
        self._refusal: VmError | None = None
        self._refusals = 0
        self._tune_at: datetime | None = None
        self._layout = layout
        self._tools = tools
        self._publish = publish
        self._attention = Attention()
        self._tasks: anyio.abc.TaskGroup | None = None

    @property
    def id(self) -> str:
        return self.desired.id

    @property
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
        self._tune_at = None
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

    def poke(self) -> None:
        """Has the machine looked at again."""
        self._attention.poke()

    async def look(self) -> None:
        """Looks whether the guest is paused: somebody may have done that past us."""
        if self.vmm is not None and self.vmm.alive and self.record.phase == "running":
            try:
                self.paused = (await self.client.describe_instance()).state == "Paused"
            except VmmFailure as error:
                log.warning("no answer from the VMM", vm=self.id, error=error.message)

    async def given_power(
        self, power: Literal["running", "paused"], send: Callable[[], Awaitable[T]]
    ) -> T:
        """Has ``send`` pause or resume the guest past us. From now on that is what is wanted: it
        is not taken back at the next look. What ``send`` raises leaves all as it was."""
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
        record, seen = self.record, self._seen()
        applied = not seen.alive or record.told == tuning.wanted(self.desired)
        return MachineStatus(
            id=self.id,
            generation=self.desired.generation,
            state=state_of(seen, record.error),
            boot=record.boot,
            engine=record.engine,
            pid=self.vmm.pid if self.vmm is not None and seen.alive else None,
            socket=str(self.paths.socket),
            nics=[
                MachineNicStatus(iface=nic.iface, tap=tap_name(self.id, index))
                for index, nic in enumerate(self.desired.nics)
            ],
            configured_at=record.configured_at,
            started_at=record.started_at,
            exited_at=record.exited_at,
            exit_cause=record.exit_cause,
            error=record.error,
            observed_at=_now(),
            devices_applied=applied,
            devices_error=None if applied else self._refusal,
            restarts=record.restarts.count,
            restart_at=restart_at(self.desired, seen),
            last_exit=record.last_exit,
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
                    for done in waiting:
                        done.set()
                if not self.gone.is_set():
                    await self._attention.poked(self._rest_s())
            tasks.cancel_scope.cancel()
        self._attention.dismiss()

    def _rest_s(self) -> float | None:
        """Until there will be something to do without anybody asking for it."""
        due_at = restart_at(self.desired, self._seen())
        return None if due_at is None else max(0.0, (due_at - _now()).total_seconds())

    async def _converged(self) -> None:
        if not self.gone.is_set():
            await self._attention.attended()

    async def _pass(self) -> None:
        try:
            if not self.deleting:
                await self.look()
            while not self.deleting:
                step = plan(self.desired, self._seen(), _now())
                if step is Step.NOTHING:
                    break
                await self._take(step)
            if self.deleting:
                await self._delete()
                return
        except StageFailed as failed:
            self._fail(failed.error)
        except Exception as error:
            # One machine's surprise must not take the others' agent down.
            log.exception("unexpected error", vm=self.id)
            surprise = f"an unexpected error: {type(error).__name__}: {error}"
            self._fail(VmError(stage="run", message=surprise, suggestion="read the agent's log"))
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
            tuned=self._is_tuned(),
            exit_cause=self.record.exit_cause,
            restarts=self.record.restarts,
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

    async def _prepare(self) -> None:
        await starting.ensure_files(self.desired, self.paths, self._tools, self.record.uid)
        self.record.phase = "configured"
        self.record.configured_at = _now()
        self.record.error = None
        self._save()

    async def _start(self) -> None:
        begun = time.perf_counter()
        record, paths = self.record, self.paths
        desired = self.desired
        if not record.jailed:
            record.engine = self._tools.engine
        await starting.prepare(desired, paths, self._tools, record.uid)
        prepared = time.perf_counter()
        self.record = record = Record(
            engine=record.engine,
            jailed=record.jailed,
            uid=record.uid,
            phase="starting",
            boot=self.desired.boot,
            console_offset=paths.console_log.stat().st_size,
            configured_at=record.configured_at or _now(),
            told=tuning.wanted(desired),
            restarts=record.restarts if self.desired.boot == record.boot else FRESH,
            last_exit=record.last_exit,
        )
        self._refusal, self._refusals = None, 0
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
        await self._await_api()
        log.info(
            "machine started" if self.record.phase == "running" else "machine did not start",
            vm=self.id,
            boot=record.boot,
            pid=vmm.pid,
            prepare_ms=_ms(prepared - begun),
            spawn_ms=_ms(spawned - prepared),
            api_ms=_ms(time.perf_counter() - spawned),
        )

    async def _restart(self) -> None:
        """The boot that ended by itself once more. Its TAPs may still be there."""
        record = self.record
        record.restarts = restarts.before_attempt(record.restarts, _now())
        log.info("machine restarts", vm=self.id, boot=record.boot, restarts=record.restarts.count)
        await self._start()

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

    async def _await_api(self) -> None:
        """Until the VMM says that the guest runs. One that dies first is left to SETTLE."""
        try:
            info = await starting.until_guest_runs(
                self._held(), self.record, self.paths, self.client
            )
        except starting.NoAnswer as error:
            await self._kill()
            await self._settle()
            # Nobody asked for this end: the restart policy has its say.
            self.record.exit_cause = "crashed"
            raise StageFailed(
                "boot",
                f"the VMM does not answer: {error}",
                suggestion=f"nexus logs {self.desired.name} --source vmm",
                log_tail=last_lines(self.paths.vmm_log),
            ) from error
        if info is None:
            return
        self.paused = info.state == "Paused"
        self.record.phase = "running"
        self.record.started_at = _now()
        self.record.error = None
        self.record.restarts = restarts.after_start(self.record.restarts)
        self._note()
        faults.point("after_running")

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

    def _is_tuned(self) -> bool:
        resting = self._tune_at is not None and _now() < self._tune_at
        return resting or self.record.told == tuning.wanted(self.desired)

    async def _tune(self) -> None:
        """Tells the VMM what is wanted of its devices. A VM whose VMM refuses goes on as it is;
        it is told again, ever more rarely, until it takes it or something else is wanted."""
        record, wish = self.record, tuning.wanted(self.desired)
        try:
            await anyio.to_thread.run_sync(disks.grow, self.desired, self.paths)
            record.told, self._refusal = await tuning.tell(self.client, record.told, wish)
        except StageFailed as failed:
            self._refusal = failed.error
        if self._refusal is None:
            # Also forgets devices that are no longer wanted.
            record.told, self._refusals = wish, 0
        elif self._held().alive and self._tasks is not None:
            self._refusals += 1
            rest_s = tuning.rest_s(self._refusals)
            self._tune_at = _now() + timedelta(seconds=rest_s)
            self._tasks.start_soon(self._look_again, rest_s)
            log.warning("devices refused", vm=self.id, error=self._refusal.message, rest_s=rest_s)
        faults.point("after_tune")
        self._save()

    async def _look_again(self, after_s: float) -> None:
        await anyio.sleep(after_s)
        self.poke()

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

    def _held(self) -> Vmm:
        if self.vmm is None:
            raise RuntimeError("this step needs a VMM")
        return self.vmm


def _now() -> datetime:
    return datetime.now(UTC)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
