"""``client.images``, sync and async."""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from nexus.api.images import (
    Image,
    ImageBuild,
    ImageBuildCreate,
    ImageCreate,
    ImageKind,
    ImageRecipe,
)
from nexus.client.calls import images as calls

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client


class Images:
    """``client.images``."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def register(self, spec: ImageCreate) -> Image:
        """Registers a file that lies under the manager's image root."""
        return self._client.send(calls.register_image(spec))

    def list(
        self, *, kind: ImageKind | None = None, name: str | None = None, limit: int | None = None
    ) -> Iterator[Image]:
        return self._client.pages(lambda cursor: calls.list_images(kind, name, limit, cursor))

    def get(self, ref: str) -> Image:
        return self._client.send(calls.get_image(ref))

    def delete(self, ref: str) -> None:
        self._client.send(calls.delete_image(ref))

    def build(self, recipe: ImageRecipe) -> ImageBuild:
        """Begins a build, or returns the one of this recipe that runs already."""
        return self._client.send(calls.build_image(ImageBuildCreate(recipe=recipe)))

    def get_build(self, build_id: str) -> ImageBuild:
        return self._client.send(calls.get_build(build_id))

    def builds(self, *, limit: int | None = None) -> Iterator[ImageBuild]:
        """All builds, the newest first."""
        return self._client.pages(lambda cursor: calls.list_builds(limit, cursor))


class AsyncImages:
    """``client.images``."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def register(self, spec: ImageCreate) -> Image:
        """Registers a file that lies under the manager's image root."""
        return await self._client.send(calls.register_image(spec))

    def list(
        self, *, kind: ImageKind | None = None, name: str | None = None, limit: int | None = None
    ) -> AsyncIterator[Image]:
        return self._client.pages(lambda cursor: calls.list_images(kind, name, limit, cursor))

    async def get(self, ref: str) -> Image:
        return await self._client.send(calls.get_image(ref))

    async def delete(self, ref: str) -> None:
        await self._client.send(calls.delete_image(ref))

    async def build(self, recipe: ImageRecipe) -> ImageBuild:
        """Begins a build, or returns the one of this recipe that runs already."""
        return await self._client.send(calls.build_image(ImageBuildCreate(recipe=recipe)))

    async def get_build(self, build_id: str) -> ImageBuild:
        return await self._client.send(calls.get_build(build_id))

    def builds(self, *, limit: int | None = None) -> AsyncIterator[ImageBuild]:
        """All builds, the newest first."""
        return self._client.pages(lambda cursor: calls.list_builds(limit, cursor))
