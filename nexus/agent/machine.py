"""The life of one VM, from the first wish to its last file.

One task owns a machine. Whoever wants something changes ``desired`` and wakes it; it looks at the
facts, asks ``plan`` for the next step, takes it, and looks again until nothing is left to do. Every
step can run twice and can be cut off anywhere: what was begun is in ``status.json`` before it is.

The steps themselves are in ``machine_start.py``, ``machine_snapshots.py`` and ``machine_end.py``:
layers over ``machine_body.py``, what they all lean on.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Literal, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from nexus.agent import capture, disks, faults
from nexus.agent.atomic import write_atomically
from nexus.agent.errors import StageFailed
from nexus.agent.machine_snapshots import Captured
from nexus.agent.plan import Step, plan, restart_at
from nexus.agent.volumes import volumes_of
from nexus.api.errors import Conflict
from nexus.api.machines import Machine, MachineStatus
from nexus.api.vms import VmError
from nexus.vmm.errors import VmmError, VmmFailure

RESUME_AGAIN_S = 1.0
"""A VMM that is busy with a snapshot does not hear that its guest is to go on."""

_NEED_IMAGES = frozenset({Step.PREPARE, Step.START, Step.RESTART})

T = TypeVar("T")

log = structlog.get_logger("machine")


class MachineLife(Captured):
    """One VM on this host. Its methods are called from the event loop only."""

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

    async def _shed(self) -> None:
        """Lets go of volumes that it shall not have any more, so that their space is their own."""
        desired = self.desired
        await anyio.to_thread.run_sync(disks.shed_drives, desired, self.paths)
        faults.point("after_shed")
        self.record.volumes = sorted(set(self.record.volumes) & volumes_of(desired))
        self._save()

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


def _now() -> datetime:
    return datetime.now(UTC)
