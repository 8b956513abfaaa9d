"""Uploads on the wire of tests, whose connections break where they are told to."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from nexus.api.common import Created, Item, Page
from nexus.api.errors import (
    Conflict,
    Forbidden,
    HostUnreachable,
    NotFound,
)
from nexus.api.images import (
    Image,
    ImageUpload,
    ImageUploadComplete,
    ImageUploadCreate,
)
from nexus.ids import new_id
from tests.client.things import NOW, make_image

if TYPE_CHECKING:
    from tests.client.wire import Wire


def add_upload_routes(app: FastAPI, wire: "Wire", check: Callable[[Request], None]) -> None:
    def current(ref: str) -> ImageUpload:
        if wire.upload is None or wire.upload.id != ref:
            raise NotFound(f"there is no upload {ref}")
        return wire.upload.model_copy(update={"offset": len(wire.uploaded)})

    @app.post("/v1/images/uploads", status_code=201)
    async def begin(request: Request, body: ImageUploadCreate) -> Created[ImageUpload]:
        check(request)
        wire.bodies.append(await request.json())
        asked = body.model_dump()
        wire.upload = ImageUpload(
            id=new_id(), project="default", offset=0, created_at=NOW, expires_at=NOW, **asked
        )
        return Created(id=wire.upload.id, item=wire.upload)

    @app.get("/v1/images/uploads")
    async def uploads(request: Request) -> Page[ImageUpload]:
        check(request)
        return Page(items=[wire.upload] if wire.upload else [])

    @app.get("/v1/images/uploads/{ref}")
    async def get(request: Request, ref: str) -> Item[ImageUpload]:
        check(request)
        return Item(item=current(ref))

    @app.patch("/v1/images/uploads/{ref}")
    async def write(request: Request, ref: str) -> Item[ImageUpload]:
        check(request)
        request.state.body_bound.max_bytes = 1 << 40
        if int(request.headers["upload-offset"]) != current(ref).offset:
            raise Conflict("another offset")
        takes = wire.takes.pop(0) if wire.takes else 1 << 60
        if takes < 0:
            raise Forbidden("the token was revoked meanwhile")
        end = len(wire.uploaded) + takes
        async for chunk in request.stream():
            wire.uploaded = (wire.uploaded + chunk)[:end]
            if len(wire.uploaded) == end:
                raise HostUnreachable("the connection breaks")
        return Item(item=current(ref))

    @app.post("/v1/images/uploads/{ref}/complete", status_code=201)
    async def complete(request: Request, ref: str, body: ImageUploadComplete) -> Created[Image]:
        check(request)
        upload = current(ref)
        wire.sha256 = body.sha256
        image = make_image(upload.kind, upload.name)
        wire.images.append(image)
        wire.upload = None
        return Created(id=image.id, item=image)

    @app.delete("/v1/images/uploads/{ref}")
    async def delete(request: Request, ref: str) -> dict[str, bool]:
        check(request)
        current(ref)
        wire.upload = None
        return {"ok": True}
