"""``/v1/images/builds``. Its routes go before those of ``/v1/images/{ref}``."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request

from nexus.api.common import Created, Item, Page, Uuid, Wire
from nexus.api.images import ImageBuild, ImageBuildCreate
from nexus.manager import oci_sources
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require
from nexus.manager.services import builds

router = APIRouter(prefix="/v1/images/builds", tags=["images"])

Reader = Annotated[Principal, require("images:read")]
Writer = Annotated[Principal, require("images:write")]


class BuildQuery(Wire):
    """Which page of the builds."""

    cursor: Uuid | None = None
    limit: Annotated[int, Query(ge=1, le=1000)] = 100


@router.post("", status_code=201)
async def create(
    request: Request, nexus: Nexus, principal: Writer, body: ImageBuildCreate
) -> Created[ImageBuild]:
    """Queues a build, or answers with the same one that is not finished yet."""
    caller = caller_of(request, principal, "images:write")
    if body.source is not None:
        await to_thread.run_sync(oci_sources.check, nexus.settings, body.source)
    build = await builds.start(nexus.db, caller, body.recipe, body.options())
    nexus.builds.hint()
    return Created(id=build.id, item=build)


@router.get("")
async def find(
    nexus: Nexus, principal: Reader, query: Annotated[BuildQuery, Query()]
) -> Page[ImageBuild]:
    """Builds, the newest first."""
    return await builds.find(nexus.db, principal.project, cursor=query.cursor, limit=query.limit)


@router.get("/{build_id}")
async def get(nexus: Nexus, principal: Reader, build_id: Uuid) -> Item[ImageBuild]:
    """One build, with its progress."""
    return Item(item=await builds.get(nexus.db, principal.project, build_id))
