"""Clearing away uploads that nobody went on with."""

from datetime import UTC, datetime

import anyio
import structlog
from sqlalchemy.exc import SQLAlchemyError

from nexus.manager.services.uploads import Uploads

log = structlog.get_logger("uploads")

SWEEP_S = 600.0


async def sweep_uploads(uploads: Uploads) -> None:
    """Works until cancelled; begins with what an earlier process left."""
    while True:
        try:
            await uploads.sweep(datetime.now(UTC))
        except (SQLAlchemyError, OSError):
            log.exception("cannot clear old uploads away; trying again")
        await anyio.sleep(SWEEP_S)
