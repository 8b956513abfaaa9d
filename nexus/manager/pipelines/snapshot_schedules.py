"""Taking snapshots when their schedules say so, and letting go of those that are not kept.

Asleep until the next one is due. The snapshots themselves are ``pipelines.snapshots``'s.
"""

from datetime import UTC, datetime

import anyio
import structlog
from sqlalchemy.exc import SQLAlchemyError

from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.pipelines.snapshots import SnapshotPipeline
from nexus.manager.services import snapshot_schedules as schedules

log = structlog.get_logger("pipeline.snapshot_schedules")

LOOK_S = 30.0
"""At the latest: another manager may have been told of a schedule and died."""
AGAIN_S = 1.0


class SchedulePipeline:
    """One for a manager process."""

    def __init__(self, db: Database, snapshots: SnapshotPipeline) -> None:
        self.db = db
        self.snapshots = snapshots
        self._to_prune: set[str] = set()
        self._wake = anyio.Event()
        snapshots.on_ready.append(self._ready)

    def hint(self) -> None:
        """One may be due earlier than was known, or fewer may be kept."""
        self._wake.set()

    def look_at(self, vm_id: str) -> None:
        """More of this VM's may be there than are kept. A hint that is lost costs one interval."""
        self._to_prune.add(vm_id)
        self._wake.set()

    def _ready(self, row: SnapshotRow) -> None:
        if row.scheduled and row.vm_id is not None:
            self.look_at(row.vm_id)

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            self._wake = anyio.Event()
            try:
                rest_s = await self._round()
            except (SQLAlchemyError, OSError):
                log.exception("the database does not answer; trying again")
                rest_s = AGAIN_S
            with anyio.move_on_after(rest_s):
                await self._wake.wait()

    async def _round(self) -> float:
        """Does what is to be done; how long there is nothing more."""
        now = datetime.now(UTC)
        for row in await schedules.due(self.db, now):
            if await schedules.take(self.db, row, now):
                self.snapshots.hint()
            self._to_prune.add(row.vm_id)
        for vm_id in [*self._to_prune]:
            if pruned := await schedules.prune(self.db, vm_id):
                log.info("snapshots are not kept any longer", vm_id=vm_id, snapshots=pruned)
                self.snapshots.hint()
            self._to_prune.discard(vm_id)
        due_at = await schedules.next_due(self.db)
        if due_at is None:
            return LOOK_S
        return min(LOOK_S, max(0.0, (due_at - datetime.now(UTC)).total_seconds()))
