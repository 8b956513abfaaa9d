"""What there is of one VM on this host: its wish, its record, its VMM, and who owns them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from nexus.agent.attention import Attention
from nexus.agent.capture import Captures
from nexus.agent.errors import disk_failure
from nexus.agent.lacking import ImagesOfOne
from nexus.agent.layout import Layout, VmPaths
from nexus.agent.plan import Seen
from nexus.agent.process import Vmm
from nexus.agent.record import Record
from nexus.agent.snapshots import Shelf
from nexus.agent.status import status_of
from nexus.agent.tools import Tools
from nexus.agent.tuner import Tuner
from nexus.agent.volumes import volumes_of
from nexus.api.machines import Machine, MachineStatus
from nexus.api.vms import VmError
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmFailure

API_TIMEOUT_S = 5.0

log = structlog.get_logger("machine")


class Body:
    """What every step of a life leans on. Called from the event loop only."""

    def __init__(
        self,
        desired: Machine,
        record: Record,
        layout: Layout,
        tools: Tools,
        shelf: Shelf,
        publish: Callable[["Body"], None],
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
        self._unloaded: Record | None = None
        """Of before the load that is under way, until that touches a disk."""
        self._introducing: Record | None = None
        """Of the boot whose guest is being told who it is."""
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

    def _fail(self, error: VmError) -> None:
        log.warning("machine failed", vm=self.id, stage=error.stage, error=error.message)
        self.record.error = error
        self._note()

    def _hold(self, vmm: Vmm) -> None:
        """Takes charge of a live VMM: remembers it and watches for its end."""
        if self._tasks is None:
            raise RuntimeError("a machine that does not run holds no VMM")
        self.vmm = vmm
        self.record.pid = vmm.pid
        self._tasks.start_soon(self._watch, vmm)

    async def _watch(self, vmm: Vmm) -> None:
        await vmm.watch()
        if vmm is self.vmm:
            self.poke()

    async def _look_again(self, after_s: float) -> None:
        await anyio.sleep(after_s)
        self.poke()

    def _runs(self) -> bool:
        return self.vmm is not None and self.vmm.alive and self.record.phase == "running"

    def _held(self) -> Vmm:
        if self.vmm is None:
            raise RuntimeError("this step needs a VMM")
        return self.vmm
