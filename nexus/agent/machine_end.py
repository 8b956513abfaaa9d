"""How a boot of a VM ends, and the VM itself."""

import contextlib
from datetime import UTC, datetime, timedelta

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from nexus.agent import disks, faults, restarts
from nexus.agent.ending import CONSOLE_LINES, Ending, how_it_ended, last_lines
from nexus.agent.errors import StageFailed
from nexus.agent.machine_body import Body
from nexus.agent.plan import Step, plan
from nexus.api.endings import LastExit
from nexus.vmm.errors import VmmError, VmmFailure

KILL_TIMEOUT_S = 10.0
ASK_AGAIN_S = 1.0
"""A guest that is still booting does not hear Ctrl-Alt-Del, so it is sent until it is down."""

log = structlog.get_logger("machine")


class Ended(Body):
    """A VM whose boots can end, with all that is to be cleared up then."""

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

    async def _settle(self, *, asked: bool = True) -> None:
        """Writes down how the VMM ended and clears up: TAPs and socket go, the disk stays.

        ``asked`` is for one that was killed: whether anybody but this agent wanted that.
        """
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
        record.pid = record.stop_asked_at = None
        record.capturing = record.last_snapshot = None
        record.exited_at = now = _now()
        record.exit_cause = ending.cause
        record.error = ending.error
        record.last_exit = LastExit(at=now, cause=ending.cause, message=ending.message)
        ran_for = now - (record.started_at or now)
        record.restarts = restarts.after_end(record.restarts, ran_for, now)
        self._note()
        asked = asked and ending.cause in ("stopped", "killed")
        self._tools.counts.ended(ending.cause, asked=asked)
        log.info("machine ended", vm=self.id, boot=record.boot, cause=ending.cause)
        self._publish(self)
        if plan(self.desired, self._seen(), now) is not Step.RESTART:
            await self._tools.network.remove_taps(self.id)

    async def _delete(self) -> None:
        """Everything goes. From the renaming on, a restart finishes it without the VM's files."""
        if self.vmm is not None and self.vmm.alive:
            await self._kill()
        if self.vmm is not None:
            self._tools.counts.ended("killed", asked=True)
            self.vmm = None  # tried again, a deletion does not count it twice
        trash = self._layout.trash(self.id)
        if self.paths.dir.exists():
            await anyio.to_thread.run_sync(disks.remove_tree, trash)
            self.paths.dir.rename(trash)
        faults.point("after_trash")
        await self._tools.network.remove_taps(self.id)
        await anyio.to_thread.run_sync(disks.remove_tree, trash)
        log.info("machine deleted", vm=self.id)
        self.gone.set()


def _now() -> datetime:
    return datetime.now(UTC)
