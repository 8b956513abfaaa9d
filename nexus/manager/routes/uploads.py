"""``/v1/images/uploads``. Its routes go before those of ``/v1/images/{ref}``."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from nexus import streams
from nexus.api.common import Created, Item, Ok, Page, Uuid, Wire
from nexus.api.images import Image, ImageUpload, ImageUploadComplete, ImageUploadCreate
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/images/uploads", tags=["images"])

Reader = Annotated[Principal, require("images:read")]
Writer = Annotated[Principal, require("images:write")]
Offset = Annotated[
    int,
    Header(alias="Upload-Offset", ge=0, le=1 << 50, description="Where the body belongs."),
]


class UploadQuery(Wire):
    """Which page of the uploads."""

    cursor: Uuid | None = None
    limit: Annotated[int, Query(ge=1, le=1000)] = 100


@router.post("", status_code=201)
async def create(
    request: Request, nexus: Nexus, principal: Writer, body: ImageUploadCreate
) -> Created[ImageUpload]:
    """Announces an upload."""
    upload = await nexus.uploads.start(caller_of(request, principal, "images:write"), body)
    return Created(id=upload.id, item=upload)


@router.get("")
async def find(
    nexus: Nexus, principal: Reader, query: Annotated[UploadQuery, Query()]
) -> Page[ImageUpload]:
    """Uploads that are not complete, in the order of their beginning."""
    return await nexus.uploads.find(principal.project, cursor=query.cursor, limit=query.limit)


@router.get("/{upload_id}")
async def get(
    response: Response, nexus: Nexus, principal: Reader, upload_id: Uuid
) -> Item[ImageUpload]:
    """One upload, and in ``Upload-Offset`` how far it is."""
    upload = await nexus.uploads.get(principal.project, upload_id)
    response.headers["upload-offset"] = str(upload.offset)
    return Item(item=upload)


@router.patch(
    "/{upload_id}",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"format": "binary"}}},
        }
    },
)
async def write(
    request: Request,
    response: Response,
    nexus: Nexus,
    principal: Writer,
    upload_id: Uuid,
    upload_offset: Offset,
) -> Item[ImageUpload]:
    """Appends the body as it comes. 409 for another offset than the upload's own.

    The answer says how far it came; what came before a lost connection stays.
    """
    content = await streams.upload(nexus.settings.image_max_bytes)(request)
    caller = caller_of(request, principal, "images:write")
    upload = await nexus.uploads.write(caller, upload_id, upload_offset, content)
    response.headers["upload-offset"] = str(upload.offset)
    return Item(item=upload)


@router.post("/{upload_id}/complete", status_code=201)
async def complete(
    request: Request,
    nexus: Nexus,
    principal: Writer,
    upload_id: Uuid,
    body: ImageUploadComplete | None = None,
) -> Created[Image]:
    """Checks what was sent and makes the image of it."""
    caller = caller_of(request, principal, "images:write")
    image = await nexus.uploads.complete(caller, upload_id, body or ImageUploadComplete())
    return Created(id=image.id, item=image)


@router.delete("/{upload_id}")
async def delete(request: Request, nexus: Nexus, principal: Writer, upload_id: Uuid) -> Ok:
    """Throws an upload away."""
    await nexus.uploads.delete(caller_of(request, principal, "images:write"), upload_id)
    return Ok()
