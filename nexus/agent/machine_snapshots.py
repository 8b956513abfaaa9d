"""Captures of a VM between two steps of its life, and what a guest is told that came of one."""

from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import anyio
import structlog

from nexus.agent import capture, disks, faults, guest, identity, tuning
from nexus.agent.capture import Capture, Captures, Taken
from nexus.agent.capture_files import CaptureFiles
from nexus.agent.guest_channel import nobody_answers
from nexus.agent.identity import KnownAs
from nexus.agent.layout import SnapshotPaths
from nexus.agent.machine_start import Begun
from nexus.agent.record import Record
from nexus.api.errors import GuestAgentMissing, GuestFault
from nexus.api.origins import Identity
from nexus.api.snapshots import SnapshotOrder

BOOT_S = 15.0
"""So long after its VMM's start a guest that does not answer may be booting still."""
LOOK_S = 0.05

log = structlog.get_logger("machine")


class Captured(Begun):
    """A VM that can be captured, and may have been."""

    @property
    def captures(self) -> Captures:
        return self._captures

    def base_of(self, order: SnapshotOrder) -> str | None:
        """The snapshot that a full one of now could be laid over, if it is still there."""
        if order.kind == "diff" or self.record.engine != "firecracker":
            return None
        return self.record.last_snapshot

    def capture_files(self) -> AbstractAsyncContextManager[CaptureFiles]:
        """Files for the VMM to write a capture into."""
        return self._tools.ram.files_for(self.record, self.desired.mem_mib, self.paths)

    async def capture(
        self,
        order: SnapshotOrder,
        folder: SnapshotPaths,
        files: CaptureFiles,
        base: str | None = None,
    ) -> Taken:
        """A moment of the VM in that folder, taken between two steps of its life. ``base`` is the
        snapshot whose memory is there already; ``files`` are still to be saved.

        Raises NexusError; then the guest goes on, and what is in the folder is worthless.
        """
        if self.gone.is_set():
            raise capture.no_longer(self.desired)
        with self._captures.asked(order, folder, files, base) as asked:
            self.poke()
            return await asked.outcome()

    def snapshot_kept(self, snapshot_id: str) -> None:
        """A snapshot of this VM is on the shelf: a diff may lean on it, if it is the last one."""
        if self._taken == snapshot_id and not self.deleting:
            self.record.last_snapshot = snapshot_id
            self._note()

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
        asked.changes = capture.changes_suffice(order, record, asked.base)
        over_base = capture.lies_over_base(order, record, asked.base)
        record.capturing, record.last_snapshot, self._taken = order.id, None, None
        record.captured = True
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
        version = record.engine_version or self._tools.engine_version
        return Taken(order, over_base, machine, record.engine, version, applied, pause_ms, at)

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
        if not waits or not self._runs() or self.paused or self._introducing is record:
            return
        if self._tasks is not None and record.known_as is not None:
            self._introducing = record
            self._tasks.start_soon(self._tell_identity, record, record.known_as)

    async def _tell_identity(self, record: Record, known_as: KnownAs) -> None:
        """Until it was told, or says nothing for good: a guest may have been captured while it
        booted, or its host may have more to do than it can."""
        try:
            for rest_s in identity.RESTS_S:
                await anyio.sleep(rest_s)
                if not self._listens(record):
                    return
                told = await identity.tell(
                    self.paths.vsock, self.desired, known_as, self._captures.still
                )
                if told.state != "applied" and not self._listens(record):
                    return  # it is told when it goes on
                if record is not self.record:
                    return
                self._learn(told)
                if told.state != "absent":
                    return
        finally:
            if self._introducing is record:
                self._introducing = None

    async def until_it_listens(self) -> None:
        """Returns once the guest's agent answers and knows who the guest is. A guest that started
        ``BOOT_S`` ago or earlier is not waited for.

        Raises GuestAgentMissing for one that has had so long and does not answer.
        """
        began = self.record.started_at
        age_s = (datetime.now(UTC) - began).total_seconds() if began else BOOT_S
        if not 0 <= age_s < BOOT_S:
            return
        with anyio.move_on_after(BOOT_S - age_s):
            while True:
                if await self._answers():
                    return
                await anyio.sleep(LOOK_S)
        raise nobody_answers()

    async def _answers(self) -> bool:
        """Also when there is nobody to wait for."""
        if not self._listens(self.record):
            return True
        known = self.record.identity
        if known is not None and known.state in ("pending", "absent"):
            return False
        try:
            await guest.health(self.paths.vsock)
        except (GuestAgentMissing, GuestFault):
            return False
        return True

    def _listens(self, record: Record) -> bool:
        """Whether the guest of that boot can be spoken to."""
        return record is self.record and self._runs() and not self.paused

    def _learn(self, told: Identity) -> None:
        self.record.identity = told
        if told.state == "applied":
            self.record.known_as = None
        self._note()
        log.info("identity", vm=self.id, state=told.state, message=told.message)
        self._publish(self)
