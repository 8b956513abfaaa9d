"""``/v1/volumes``."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from nexus.api.common import Created, Item, Ok, Page, VolumeRef
from nexus.api.volumes import Volume, VolumeCreate
from nexus.manager.routes.answers import item
from nexus.manager.routes.parts import IdCursor, Limit
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/volumes", tags=["volumes"])

Reader = Annotated[Principal, require("volumes:read")]
Writer = Annotated[Principal, require("volumes:write")]
Ref = Annotated[VolumeRef, Path(description="A volume's id, or its name.")]


@router.post("", status_code=201)
async def create(
    request: Request, nexus: Nexus, principal: Writer, body: VolumeCreate
) -> Created[Volume]:
    """Makes a volume. It takes room on its host only as a guest writes to it."""
    volume = await nexus.volumes.create(caller_of(request, principal, "volumes:write"), body)
    return Created(id=volume.id, item=volume)


@router.get("")
async def find(
    nexus: Nexus, principal: Reader, cursor: IdCursor = None, limit: Limit = 100
) -> Page[Volume]:
    """Volumes in the order they were made."""
    return await nexus.volumes.page(principal.project, cursor=cursor, limit=limit)


@router.get("/{ref}", response_model=Item[Volume])
async def get(request: Request, nexus: Nexus, principal: Reader, ref: Ref) -> Response:
    """One volume."""
    return item(request, await nexus.volumes.get(principal.project, ref))


@router.delete("/{ref}")
async def delete(request: Request, nexus: Nexus, principal: Writer, ref: Ref) -> Ok:
    """Deletes a volume with what is on it. 409 while a VM has it."""
    await nexus.volumes.delete(caller_of(request, principal, "volumes:write"), ref)
    return Ok()
