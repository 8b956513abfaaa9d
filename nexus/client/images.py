"""``client.images``, sync and async."""

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from nexus.api.images import (
    Image,
    ImageBuild,
    ImageBuildCreate,
    ImageBuildOptions,
    ImageCreate,
    ImageFormat,
    ImageKind,
    ImageRecipe,
    ImageUpload,
    ImageUploadCreate,
)
from nexus.client.calls import images as calls
from nexus.client.errors import NexusApiError
from nexus.client.uploads import Sending, Sent

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

    def build(self, recipe: ImageRecipe, options: ImageBuildOptions | None = None) -> ImageBuild:
        """Begins a build, or returns the same one if it runs already."""
        given = options.model_dump(exclude_defaults=True) if options else {}
        return self._client.send(calls.build_image(ImageBuildCreate(recipe=recipe, **given)))

    def get_build(self, build_id: str) -> ImageBuild:
        return self._client.send(calls.get_build(build_id))

    def builds(self, *, limit: int | None = None) -> Iterator[ImageBuild]:
        """All builds, the newest first."""
        return self._client.pages(lambda cursor: calls.list_builds(limit, cursor))

    def upload(
        self,
        path: Path | str,
        *,
        name: str,
        kind: ImageKind = "rootfs",
        format: ImageFormat | None = None,
        progress: Sent | None = None,
        resume: str | None = None,
    ) -> Image:
        """Sends a file of this machine and makes an image of it, whatever breaks in between.

        ``resume`` is the id of an upload that an earlier call began; ``progress`` is called with
        the bytes sent and the bytes in all. Raises NexusApiError.
        """
        with Sending.of(path, progress) as sending:
            upload = (
                self.get_upload(resume)
                if resume
                else self.begin_upload(
                    ImageUploadCreate(
                        kind=kind, name=name, size_bytes=sending.size_bytes, format=format
                    )
                )
            )
            return self.send(upload, sending)

    def begin_upload(self, spec: ImageUploadCreate) -> ImageUpload:
        """Announces an upload; ``upload(..., resume=id)`` sends it."""
        return self._client.send(calls.begin_upload(spec))

    def send(self, upload: ImageUpload, sending: Sending) -> Image:
        """Sends what is missing of an upload and completes it."""
        sending.check(upload)
        while (offset := upload.offset) < sending.size_bytes:
            try:
                upload = self._client.send_stream(
                    calls.write_upload(upload.id), sending.blocks(offset), sending.headers(offset)
                )
                pause_s = 0.0 if upload.offset > offset else sending.stalled()
            except NexusApiError as error:
                pause_s = sending.failed(error)
            if pause_s:
                time.sleep(pause_s)
                upload = self._offset(upload, sending)
            sending.arrived(upload.offset)
        return self._client.send(calls.complete_upload(upload.id, sending.complete()))

    def _offset(self, upload: ImageUpload, sending: Sending) -> ImageUpload:
        while True:
            try:
                return self.get_upload(upload.id)
            except NexusApiError as error:
                time.sleep(sending.failed(error))

    def get_upload(self, upload_id: str) -> ImageUpload:
        return self._client.send(calls.get_upload(upload_id))

    def uploads(self, *, limit: int | None = None) -> Iterator[ImageUpload]:
        """Uploads that are not complete."""
        return self._client.pages(lambda cursor: calls.list_uploads(limit, cursor))

    def delete_upload(self, upload_id: str) -> None:
        self._client.send(calls.delete_upload(upload_id))


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

    async def build(
        self, recipe: ImageRecipe, options: ImageBuildOptions | None = None
    ) -> ImageBuild:
        """Begins a build, or returns the same one if it runs already."""
        given = options.model_dump(exclude_defaults=True) if options else {}
        return await self._client.send(calls.build_image(ImageBuildCreate(recipe=recipe, **given)))

    async def get_build(self, build_id: str) -> ImageBuild:
        return await self._client.send(calls.get_build(build_id))

    def builds(self, *, limit: int | None = None) -> AsyncIterator[ImageBuild]:
        """All builds, the newest first."""
        return self._client.pages(lambda cursor: calls.list_builds(limit, cursor))

    async def upload(
        self,
        path: Path | str,
        *,
        name: str,
        kind: ImageKind = "rootfs",
        format: ImageFormat | None = None,
        progress: Sent | None = None,
        resume: str | None = None,
    ) -> Image:
        """Sends a file of this machine and makes an image of it, whatever breaks in between.

        ``resume`` is the id of an upload that an earlier call began; ``progress`` is called with
        the bytes sent and the bytes in all. Raises NexusApiError.
        """
        with Sending.of(path, progress) as sending:
            upload = (
                await self.get_upload(resume)
                if resume
                else await self.begin_upload(
                    ImageUploadCreate(
                        kind=kind, name=name, size_bytes=sending.size_bytes, format=format
                    )
                )
            )
            return await self.send(upload, sending)

    async def begin_upload(self, spec: ImageUploadCreate) -> ImageUpload:
        """Announces an upload; ``upload(..., resume=id)`` sends it."""
        return await self._client.send(calls.begin_upload(spec))

    async def send(self, upload: ImageUpload, sending: Sending) -> Image:
        """Sends what is missing of an upload and completes it."""
        sending.check(upload)
        while (offset := upload.offset) < sending.size_bytes:
            try:
                upload = await self._client.send_stream(
                    calls.write_upload(upload.id),
                    _in_threads(sending.blocks(offset)),
                    sending.headers(offset),
                )
                pause_s = 0.0 if upload.offset > offset else sending.stalled()
            except NexusApiError as error:
                pause_s = sending.failed(error)
            if pause_s:
                await anyio.sleep(pause_s)
                upload = await self._offset(upload, sending)
            sending.arrived(upload.offset)
        last = await to_thread.run_sync(sending.complete)
        return await self._client.send(calls.complete_upload(upload.id, last))

    async def _offset(self, upload: ImageUpload, sending: Sending) -> ImageUpload:
        while True:
            try:
                return await self.get_upload(upload.id)
            except NexusApiError as error:
                await anyio.sleep(sending.failed(error))

    async def get_upload(self, upload_id: str) -> ImageUpload:
        return await self._client.send(calls.get_upload(upload_id))

    def uploads(self, *, limit: int | None = None) -> AsyncIterator[ImageUpload]:
        """Uploads that are not complete."""
        return self._client.pages(lambda cursor: calls.list_uploads(limit, cursor))

    async def delete_upload(self, upload_id: str) -> None:
        await self._client.send(calls.delete_upload(upload_id))


async def _in_threads(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """A file's blocks, read and hashed off the event loop."""
    while (block := await to_thread.run_sync(next, blocks, None)) is not None:
        yield block
