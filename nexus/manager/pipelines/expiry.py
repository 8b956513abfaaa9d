"""Ending VMs when their time is up: asleep until the next deadline, whoever it belongs to.

The agent ends them by itself as well; here their rows go. See docs/lifecycle.md.
"""

from datetime import UTC, datetime

import anyio
import structlog
from sqlalchemy.exc import SQLAlchemyError

from nexus.manager.db.session import Database
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services import vm_expiry

log = structlog.get_logger("pipeline.expiry")

LOOK_S = 30.0
"""At the latest: another manager may have made a VM and died."""
AGAIN_S = 1.0


class ExpiryPipeline:
    """One for a manager process."""

    def __init__(self, db: Database, vms: VmPipeline) -> None:
        self.db = db
        self.vms = vms
        self._wake = anyio.Event()

    def hint(self) -> None:
        """A VM may expire earlier than was known."""
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            self._wake = anyio.Event()
            try:
                rest_s = await self._expire()
            except (SQLAlchemyError, OSError):
                log.exception("the database does not answer; trying again")
                rest_s = AGAIN_S
            with anyio.move_on_after(rest_s):
                await self._wake.wait()

    async def _expire(self) -> float:
        """Does what is due; how long there is nothing to do."""
        now = datetime.now(UTC)
        due_at = await vm_expiry.next_deadline(self.db)
        if due_at is None:
            return LOOK_S
        left_s = (due_at - now).total_seconds()
        if left_s > 0:
            return min(left_s, LOOK_S)
        rows = await vm_expiry.expire(self.db, now)
        for row in rows:
            log.info("its time is up", vm_id=row.id, expires_at=row.expires_at)
        self.vms.counts.acted("vm_expired", len(rows))
        self.vms.hint()
        return 0.0 if rows else AGAIN_S
