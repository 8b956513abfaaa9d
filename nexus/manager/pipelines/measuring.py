"""What things take on hosts, asked of each one now and then."""

from datetime import UTC, datetime

import anyio
import structlog
from sqlalchemy.exc import SQLAlchemyError

from nexus.api.errors import NexusError
from nexus.manager.agents import Agent
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostUseRow

log = structlog.get_logger("pipeline.measuring")

MEASURE_S = 60.0
"""How old the figures of ``GET /v1/usage`` may be: a host looks at all of its files for them."""


async def run(db: Database, agent: Agent, host_id: str) -> None:
    """Writes down what a host says, until cancelled. A host that does not answer keeps its row."""
    while True:
        try:
            use = await agent.usage()
            async with db.write() as session:
                await session.merge(
                    HostUseRow(host_id=host_id, use=use, measured_at=datetime.now(UTC))
                )
        except (NexusError, SQLAlchemyError, OSError) as error:
            log.info("a host was not measured", host_id=host_id, error=str(error))
        await anyio.sleep(MEASURE_S)
