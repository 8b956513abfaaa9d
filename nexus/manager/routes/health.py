"""``/healthz`` and ``/readyz``: open to everybody, and silent about what is stored."""

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError

from nexus.api.common import Ok
from nexus.api.errors import NexusError
from nexus.manager.runtime import Nexus

router = APIRouter(tags=["health"])


class NotReady(NexusError):
    """The manager lives, but cannot serve yet."""

    code = "host_unreachable"
    status = 503


@router.get("/healthz")
async def healthz() -> Ok:
    """The process answers."""
    return Ok()


@router.get("/readyz")
async def readyz(nexus: Nexus) -> Ok:
    """The database answers and at least one host is healthy; else 503."""
    try:
        healthy = await nexus.hosts.any_healthy()
    except (SQLAlchemyError, OSError) as error:
        raise NotReady(
            "the database does not answer", suggestion="check DATABASE_URL and the database"
        ) from error
    if not healthy:
        raise NotReady("no host is healthy", suggestion="start an agent; nexus up does")
    return Ok()
