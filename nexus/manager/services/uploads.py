"""Uploads of images: announced, sent in as many requests as it takes, completed.

See docs/images.md.
"""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import anyio
import structlog
from anyio import to_thread
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, Page
from nexus.api.errors import (
    Conflict,
    InvalidState,
    NoCapacity,
    NotFound,
    PayloadTooLarge,
    ValidationFailed,
)
from nexus.api.images import Image, ImageUpload, ImageUploadComplete, ImageUploadCreate
from nexus.ids import new_id
from nexus.manager.db.session import Database
from nexus.manager.db.tables import ImageUploadRow
from nexus.manager.services.images import Images, Naming
from nexus.manager.uow import SYSTEM, Caller, change
from nexus.manager.upload_files import UploadFile, UploadFiles, Written

log = structlog.get_logger("uploads")

KEPT = timedelta(hours=24)
"""How long an upload waits for more."""
MAX_OPEN = 64
"""How many uploads of one project may wait at once."""
IDLE_TIMEOUT_S = 30.0
"""How long a sender may be silent before its request ends, so that another one can go on."""
BATCH_BYTES = 1 << 20
"""How much of an upload is held in memory."""


@dataclass(slots=True)
class Uploads:
    """The uploads of one manager, whose bytes lie beside its image store."""

    db: Database
    images: Images
    files: UploadFiles

    @classmethod
    def of(cls, db: Database, images: Images) -> "Uploads":
        return cls(db, images, UploadFiles(images.settings.store_dir / "uploads"))

    async def start(self, caller: Caller, wanted: ImageUploadCreate) -> ImageUpload:
        """Raises NameTaken, ValidationFailed, PayloadTooLarge, NoCapacity, Conflict."""
        limit = self.images.settings.image_max_bytes
        if wanted.size_bytes is not None:
            _bound(wanted.size_bytes, limit)
            if wanted.size_bytes > await to_thread.run_sync(self.files.free_bytes):
                raise NoCapacity(
                    f"there is no room for {wanted.size_bytes} bytes",
                    suggestion="free some space in the image store",
                )
        async with change(self.db, caller, "image_upload.create") as unit:
            await self.images.refuse(unit.session, caller.project, wanted.kind, wanted.name)
            mine = ImageUploadRow.project == caller.project
            count = await unit.session.scalar(select(func.count(ImageUploadRow.id)).where(mine))
            if (count or 0) >= MAX_OPEN:
                raise Conflict(
                    f"{count} uploads are not complete",
                    suggestion="complete or delete some: GET /v1/images/uploads",
                )
            row = ImageUploadRow(
                id=new_id(),
                project=caller.project,
                kind=wanted.kind,
                name=wanted.name,
                size_bytes=wanted.size_bytes,
                sha256=wanted.sha256,
                format=wanted.format,
                created_at=unit.at,
            )
            unit.session.add(row)
            unit.target = row.id
            unit.after = wanted.model_dump(mode="json", exclude_none=True)
            upload = wire(row, Written(0, None))
            unit.answer = lambda: Created[ImageUpload](id=upload.id, item=upload)
        return upload

    async def find(self, project: str, *, cursor: str | None, limit: int) -> Page[ImageUpload]:
        """One page, in the order of their beginning."""
        query = select(ImageUploadRow).where(ImageUploadRow.project == project)
        if cursor is not None:
            query = query.where(ImageUploadRow.id > cursor)
        async with self.db.read() as session:
            query = query.order_by(ImageUploadRow.id).limit(limit + 1)
            rows = (await session.scalars(query)).all()
        items = [wire(row, self.files.written(row.id)) for row in rows[:limit]]
        return Page(items=items, next_cursor=items[-1].id if len(rows) > limit else None)

    async def get(self, project: str, upload_id: str) -> ImageUpload:
        """Raises NotFound."""
        async with self.db.read() as session:
            row = await _row(session, project, upload_id)
        return wire(row, self.files.written(row.id))

    async def write(
        self, caller: Caller, upload_id: str, offset: int, body: AsyncIterator[bytes]
    ) -> ImageUpload:
        """Appends a request's body, which begins at ``offset``; returns how far it came.

        What came before a failure stays. Raises NotFound; Conflict for another offset than the
        upload's own or while another request writes; PayloadTooLarge; NoCapacity.
        """
        async with self.db.read() as session:
            row = await _row(session, caller.project, upload_id)
        with self.files.locked(row.id) as file:
            if offset != file.offset:
                raise Conflict(
                    f"the upload is at {file.offset}, not at {offset}",
                    suggestion=f"send what comes from byte {file.offset} on",
                )
            limit = self.images.settings.image_max_bytes
            bound = limit if row.size_bytes is None else row.size_bytes
            try:
                await _receive(file, body, bound)
            finally:
                with anyio.CancelScope(shield=True):
                    async with change(self.db, caller, "image_upload.write", row.id) as unit:
                        unit.before, unit.after = {"offset": offset}, {"offset": file.offset}
        return wire(row, self.files.written(row.id))

    async def complete(self, caller: Caller, upload_id: str, said: ImageUploadComplete) -> Image:
        """Checks what was sent and makes the image of it; then the upload is no more.

        Raises NotFound; InvalidState if bytes are missing; ValidationFailed for a wrong sha256 or
        content that is no image of its kind; NameTaken; Conflict while another request writes.
        """
        async with self.db.read() as session:
            row = await _row(session, caller.project, upload_id)
        with self.files.locked(row.id) as file:
            if file.offset == 0 or row.size_bytes not in (None, file.offset):
                raise InvalidState(
                    f"{file.offset} of {row.size_bytes or 'at least 1'} bytes are there",
                    suggestion=f"send what comes from byte {file.offset} on",
                )
            wanted = {digest for digest in (row.sha256, said.sha256) if digest is not None}
            if wanted and wanted != {await to_thread.run_sync(file.sha256)}:
                raise ValidationFailed(
                    "what arrived has another sha256 than was said",
                    suggestion="delete this upload, and send the file again",
                )

            async def forget(session: AsyncSession) -> None:
                found = await session.get(ImageUploadRow, row.id)
                if found is None:
                    raise _missing(row.id)
                await session.delete(found)

            naming = Naming(row.kind, row.name, "upload", row.format, forget)
            image = await self.images.add(caller, naming, file.descriptor)
            await to_thread.run_sync(self.files.remove, row.id)
        return image

    async def delete(self, caller: Caller, upload_id: str) -> None:
        """Throws an upload away, also while something is sent to it. Raises NotFound."""
        async with self.db.read() as session:
            await _row(session, caller.project, upload_id)
        # Before the row goes: on a full disk there would be no room for that.
        await to_thread.run_sync(self.files.remove, upload_id)
        async with change(self.db, caller, "image_upload.delete", target=upload_id) as unit:
            row = await _row(unit.session, caller.project, upload_id)
            await unit.session.delete(row)
        await to_thread.run_sync(self.files.remove, upload_id)

    async def sweep(self, now: datetime) -> int:
        """Throws away what waits longer than ``KEPT``, and files of no upload; returns how many."""
        async with self.db.read() as session:
            rows = {row.id: row for row in await session.scalars(select(ImageUploadRow))}
        stale = [row.id for row in rows.values() if _expiry(row, self.files.written(row.id)) <= now]
        # Listed after the rows: a file of an upload that is not among them belongs to none, unless
        # the upload began meanwhile; those are young.
        names = await to_thread.run_sync(self.files.names)
        orphans = [name for name in names if name not in rows and self._is_old(name, now)]
        for upload_id in stale + orphans:
            with ExitStack() as stack:
                try:
                    if upload_id in names:
                        stack.enter_context(self.files.locked(upload_id, make=False))
                except (Conflict, NotFound):
                    continue
                if upload_id in rows:
                    async with change(self.db, SYSTEM, "image_upload.expire", upload_id) as unit:
                        row = await unit.session.get(ImageUploadRow, upload_id)
                        if row is not None:
                            await unit.session.delete(row)
                await to_thread.run_sync(self.files.remove, upload_id)
            log.info("threw an upload away that nobody went on with", upload=upload_id)
        return len(stale) + len(orphans)

    def _is_old(self, name: str, now: datetime) -> bool:
        at = self.files.written(name).at
        return at is not None and at + KEPT <= now


async def _receive(file: UploadFile, body: AsyncIterator[bytes], bound: int) -> None:
    """Appends what comes, in batches; a sender that falls silent ends it without an error."""
    batch = bytearray()
    room = bound - file.offset
    try:
        while True:
            try:
                with anyio.fail_after(IDLE_TIMEOUT_S):
                    chunk = await anext(body, None)
            except TimeoutError:
                return
            if chunk is None:
                return
            room -= len(chunk)
            _bound(bound - room, bound)
            batch += chunk
            if len(batch) >= BATCH_BYTES:
                whole = bytes(batch)
                batch.clear()
                await to_thread.run_sync(file.append, whole)
    finally:
        if batch:
            # What came before a lost connection counts.
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(file.append, bytes(batch))


def _bound(size_bytes: int, limit: int) -> None:
    if size_bytes > limit:
        raise PayloadTooLarge(
            f"the upload would be larger than {limit} bytes",
            suggestion="announce the right size; the most is MANAGER_IMAGE_MAX_MIB",
        )


def wire(row: ImageUploadRow, written: Written) -> ImageUpload:
    """An upload as it is shown."""
    return ImageUpload(
        id=row.id,
        kind=row.kind,
        name=row.name,
        project=row.project,
        offset=written.offset,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        format=row.format,
        created_at=row.created_at,
        expires_at=_expiry(row, written),
    )


def _expiry(row: ImageUploadRow, written: Written) -> datetime:
    return max(row.created_at, written.at or row.created_at).astimezone(UTC) + KEPT


async def _row(session: AsyncSession, project: str, upload_id: str) -> ImageUploadRow:
    row = await session.get(ImageUploadRow, upload_id)
    if row is None or row.project != project:
        raise _missing(upload_id)
    return row


def _missing(upload_id: str) -> NotFound:
    return NotFound(
        f"there is no upload {upload_id}: it was completed, deleted or left too long",
        suggestion="see whether the image is there, else begin anew: nexus image ls",
    )
