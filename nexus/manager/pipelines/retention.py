"""Letting go of what is older than it is kept."""

from datetime import UTC, datetime, timedelta

import anyio
import structlog
from sqlalchemy.exc import SQLAlchemyError

from nexus.manager.db.session import Database
from nexus.manager.services import events

log = structlog.get_logger("pipeline.retention")

LOOK_S = 600.0


async def run(db: Database, keep_days: float) -> None:
    """Prunes events now and every ten minutes, until cancelled. Several managers may do so."""
    while True:
        try:
            pruned = await events.prune(db, datetime.now(UTC) - timedelta(days=keep_days))
            if pruned:
                log.info("old events were deleted", events=pruned, keep_days=keep_days)
        except (SQLAlchemyError, OSError):
            log.exception("old events were not deleted; trying again")
        await anyio.sleep(LOOK_S)
