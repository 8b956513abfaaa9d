"""Clearing away contents of images that nothing needs any more.

A name that goes takes its content along (``Images.delete``), unless a VM, a volume, a snapshot or a
version of a template still needs it. When the last of those goes, this finds what it left; and what
a crash left between a content and its row.
"""

import anyio
import structlog
from sqlalchemy.exc import SQLAlchemyError

from nexus.manager.services.images import Images

log = structlog.get_logger("contents")

SWEEP_S = 60.0


async def sweep_contents(images: Images, every_s: float = SWEEP_S) -> None:
    """Works until cancelled; begins with what an earlier process left."""
    while True:
        try:
            removed = await images.sweep()
            if removed:
                log.info("removed content that nothing refers to", contents=removed)
        except (SQLAlchemyError, OSError):
            log.exception("cannot clear contents away; trying again")
        await anyio.sleep(every_s)
