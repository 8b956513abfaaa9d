"""``/v1/images``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from nexus.api.common import Created, ImageName, ImageRef, Item, Ok, Page, Uuid, Wire
from nexus.api.images import Image, ImageCreate, ImageKind
from nexus.manager.routes.answers import item
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/images", tags=["images"])

Reader = Annotated[Principal, require("images:read")]
Writer = Annotated[Principal, require("images:write")]
Ref = Annotated[ImageRef, Path(description="An image's id, or a name that only one image has.")]


class ImageQuery(Wire):
    """What a list of images can be narrowed to."""

    kind: ImageKind | None = None
    name: ImageName | None = None
    cursor: Uuid | None = None
    limit: Annotated[int, Query(ge=1, le=1000)] = 100


@router.post("", status_code=201)
async def create(
    request: Request, nexus: Nexus, principal: Writer, body: ImageCreate
) -> Created[Image]:
    """Registers a file under the manager's image root: its content is copied into the store."""
    caller = caller_of(request, principal, "images:write")
    image = await nexus.images.register(caller, body)
    return Created(id=image.id, item=image)


@router.get("")
async def find(
    nexus: Nexus, principal: Reader, query: Annotated[ImageQuery, Query()]
) -> Page[Image]:
    """Images in the order of their registration."""
    return await nexus.images.find(
        principal.project,
        kind=query.kind,
        name=query.name,
        cursor=query.cursor,
        limit=query.limit,
    )


@router.get("/{ref}", response_model=Item[Image])
async def get(request: Request, nexus: Nexus, principal: Reader, ref: Ref) -> Response:
    """One image. 409 when images of several kinds have the name."""
    return item(request, await nexus.images.get(principal.project, ref))


@router.delete("/{ref}")
async def delete(request: Request, nexus: Nexus, principal: Writer, ref: Ref) -> Ok:
    """Forgets an image. 409 while a VM was made from it."""
    await nexus.images.delete(caller_of(request, principal, "images:write"), ref)
    return Ok()
