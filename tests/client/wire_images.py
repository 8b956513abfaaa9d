"""Images, their builds, and the host on the wire of tests."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from nexus.api.common import Created, Item, Page
from nexus.api.errors import (
    NotFound,
)
from nexus.api.hosts import Host
from nexus.api.images import (
    Image,
    ImageBuild,
    ImageBuildCreate,
    ImageCreate,
)
from nexus.ids import new_id
from tests.client.things import NOW, make_image

if TYPE_CHECKING:
    from tests.client.wire import Wire


def add_image_routes(app: FastAPI, wire: "Wire", check: Callable[[Request], None]) -> None:
    @app.post("/v1/images/builds", status_code=201)
    async def build(request: Request, body: ImageBuildCreate) -> Created[ImageBuild]:
        check(request)
        wire.build = ImageBuild(
            id=new_id(),
            recipe=body.recipe,
            options=body.options(),
            state="queued",
            progress=0,
            step="waiting",
            error=None,
            images=[],
            created_at=NOW,
            updated_at=NOW,
        )
        return Created(id=wire.build.id, item=wire.build)

    @app.get("/v1/images/builds/{ref}")
    async def get_build(request: Request, ref: str) -> Item[ImageBuild]:
        check(request)
        if wire.build is None:
            raise NotFound("no such build")
        state = "running" if wire.build.state == "queued" else "succeeded"
        changes = {"state": state, "step": "copying", "progress": 0.5}
        wire.build = wire.build.model_copy(update=changes)
        return Item(item=wire.build)

    @app.get("/v1/images")
    async def images(request: Request, kind: str | None = None) -> Page[Image]:
        check(request)
        return Page(items=[image for image in wire.images if kind in (None, image.kind)])

    @app.post("/v1/images", status_code=201)
    async def add_image(request: Request, body: ImageCreate) -> Created[Image]:
        check(request)
        image = make_image(body.kind, body.name)
        wire.images.append(image)
        return Created(id=image.id, item=image)

    def find(ref: str) -> Image:
        for image in wire.images:
            if ref in (image.id, image.name):
                return image
        raise NotFound(f"there is no image {ref!r}", suggestion="nexus image ls")

    @app.get("/v1/images/{ref}")
    async def get_image(request: Request, ref: str) -> Item[Image]:
        check(request)
        return Item(item=find(ref))

    @app.delete("/v1/images/{ref}")
    async def delete_image(request: Request, ref: str) -> dict[str, bool]:
        check(request)
        wire.images.remove(find(ref))
        return {"ok": True}

    @app.get("/v1/hosts")
    async def hosts(request: Request) -> Page[Host]:
        check(request)
        return Page(items=[wire.host])

    @app.get("/readyz")
    async def readyz() -> dict[str, bool]:
        return {"ok": True}
