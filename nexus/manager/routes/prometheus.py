"""``/metrics`` for Prometheus. See docs/metrics.md."""

from collections.abc import Iterable
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.core import Metric

from nexus.api.errors import NotFound
from nexus.manager.runtime import Nexus, project_seen
from nexus.manager.security import Principal, require
from nexus.metrics import exposition

router = APIRouter(tags=["metrics"])

Reader = Annotated[Principal, require("metrics:read")]


@router.get("/metrics", response_class=PlainTextResponse)
async def get(nexus: Nexus, principal: Reader) -> Response:
    """Prometheus' text format: what belongs to the token's project, or for an admin of the
    installation to any, with what this manager counts of itself; and all hosts."""
    if not nexus.settings.enable_metrics:
        raise NotFound(
            "this manager shows no metrics", suggestion="start it without MANAGER_ENABLE_METRICS=0"
        )
    project = project_seen(principal)
    families: Iterable[Metric] = await nexus.gauges.read(project)
    if project is None:
        families = chain(families, nexus.counts.registry.collect())
    return await exposition(families)
