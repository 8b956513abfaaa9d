"""Images: names for content in the store. See docs/images.md."""

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from anyio import CapacityLimiter, to_thread
from sqlalchemy import Select, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, Page
from nexus.api.errors import (
    Conflict,
    InUse,
    NameTaken,
    NexusError,
    NotFound,
    PayloadTooLarge,
    ValidationFailed,
)
from nexus.api.images import Image, ImageCreate, ImageFormat, ImageKind
from nexus.ids import new_id
from nexus.images.errors import BadImage, ImageError, ImageTooLarge
from nexus.images.intake import Intake, take
from nexus.images.store import SHA256, Store, StoredBlob
from nexus.manager import etags
from nexus.manager.config import Settings
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import ImageRow, VmRow, VolumeRow
from nexus.manager.db.template_tables import TemplateRow, TemplateVersionRow
from nexus.manager.image_root import open_under
from nexus.manager.turns import turn
from nexus.manager.uow import Caller, UnitOfWork, change

_IMPORTS = 2
_IS_ID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_PATH_DIGITS = 32
"""How much of its sha256 is in the name of an image that was made for a path."""
_NOT_NAMES = frozenset({"builds", "uploads"})
"""Words that mean something else at the same place of an address."""


class Artifact(NamedTuple):
    """Content in the store that is to have a name."""

    kind: ImageKind
    name: str
    blob: StoredBlob


class Naming(NamedTuple):
    """What a file from outside is to become."""

    kind: ImageKind
    name: str
    source: str
    format: ImageFormat | None = None
    also: Callable[[AsyncSession], Awaitable[None]] | None = None
    """What else changes in the transaction that makes the image."""


class Put(NamedTuple):
    """What naming built content did: the images' ids, and content that lost its name."""

    ids: list[str]
    replaced: set[str]


@dataclass(slots=True)
class Images:
    """The registry of one manager."""

    db: Database
    settings: Settings
    store: Store
    imports: CapacityLimiter

    @classmethod
    def of(cls, db: Database, settings: Settings) -> "Images":
        store = Store(settings.store_dir)
        store.claim()
        return cls(db, settings, store, CapacityLimiter(_IMPORTS))

    async def register(self, caller: Caller, wanted: ImageCreate) -> Image:
        """Makes an image of a file under the image root.

        Raises PathRefused, NotFound, and what ``add`` raises.
        """
        with ExitStack() as stack:
            file = open_under(self.settings.image_root, wanted.host_path)
            descriptor = await to_thread.run_sync(stack.enter_context, file)
            naming = Naming(wanted.kind, wanted.name, wanted.host_path, wanted.format)
            return await self.add(caller, naming, descriptor)

    async def add(self, caller: Caller, naming: Naming, descriptor: int) -> Image:
        """Takes an open file into the store and names it.

        Raises ValidationFailed or PayloadTooLarge for the file, NameTaken for the name, Conflict
        when the file changes meanwhile or does not fit.
        """
        async with self.db.read() as session:
            await self.refuse(session, caller.project, naming.kind, naming.name)
        intake = Intake(naming.kind, self.settings.image_max_bytes, naming.format)
        blob = await self._keep(descriptor, intake)
        async with turn(self.settings.store_dir):
            if not await to_thread.run_sync(self.store.has, blob.sha256):
                blob = await self._keep(descriptor, intake)
            return await self._insert(caller, naming, blob)

    async def for_path(self, caller: Caller, kind: ImageKind, path: str) -> str:
        """The id of the image with the content of a file under the image root; made if need be.

        Raises what ``register`` raises but NameTaken.
        """
        intake = Intake(kind, self.settings.image_max_bytes)
        with ExitStack() as stack:
            file = open_under(self.settings.image_root, path)
            descriptor = await to_thread.run_sync(stack.enter_context, file)
            blob = await self._keep(descriptor, intake)
            async with turn(self.settings.store_dir):
                same = select(ImageRow.id).where(
                    ImageRow.project == caller.project,
                    ImageRow.kind == kind,
                    ImageRow.sha256 == blob.sha256,
                )
                async with self.db.read() as session:
                    found = await session.scalar(same.order_by(ImageRow.id).limit(1))
                if found is not None:
                    return found
                if not await to_thread.run_sync(self.store.has, blob.sha256):
                    blob = await self._keep(descriptor, intake)
                name = f"path-{blob.sha256[:_PATH_DIGITS]}"
                return (await self._insert(caller, Naming(kind, name, path), blob)).id

    async def refuse(self, session: AsyncSession, project: str, kind: ImageKind, name: str) -> None:
        """Raises ValidationFailed or NameTaken for a name that a new image cannot have."""
        check_name(name)
        row = await session.scalar(_named(project, kind, name))
        if row is not None:
            raise _taken(kind, name, row.id)

    async def _keep(self, descriptor: int, intake: Intake) -> StoredBlob:
        try:
            return await to_thread.run_sync(
                take, self.store, descriptor, intake, limiter=self.imports
            )
        except ImageError as error:
            raise _refusal(error) from None

    async def _insert(self, caller: Caller, naming: Naming, blob: StoredBlob) -> Image:
        async with change(self.db, caller, "image.create") as unit:
            await self.refuse(unit.session, caller.project, naming.kind, naming.name)
            artifact = Artifact(naming.kind, naming.name, blob)
            row = _new_row(unit, artifact, source=naming.source)
            unit.answer = lambda: Created[Image](id=row.id, item=wire(row))
            try:
                await unit.session.flush()
            except IntegrityError:
                raise _taken(naming.kind, naming.name, None) from None
            if naming.also is not None:
                await naming.also(unit.session)
            return wire(row)

    async def find(
        self,
        project: str,
        *,
        kind: ImageKind | None,
        name: str | None,
        cursor: str | None,
        limit: int,
    ) -> Page[Image]:
        """One page, in the order of registration."""
        query = select(ImageRow).where(ImageRow.project == project)
        if kind is not None:
            query = query.where(ImageRow.kind == kind)
        if name is not None:
            query = query.where(ImageRow.name == name)
        if cursor is not None:
            query = query.where(ImageRow.id > cursor)
        async with self.db.read() as session:
            rows = (await session.scalars(query.order_by(ImageRow.id).limit(limit + 1))).all()
        more = len(rows) > limit
        items = [wire(row) for row in rows[:limit]]
        return Page(items=items, next_cursor=items[-1].id if more else None)

    async def get(self, project: str, ref: str) -> Image:
        """The image with this id, or the only one with this name.

        Raises NotFound, and Conflict when images of several kinds have the name.
        """
        async with self.db.read() as session:
            return wire(await _resolve(session, project, ref))

    async def delete(self, caller: Caller, ref: str) -> None:
        """Forgets an image; its content goes when nothing needs it any more.

        Raises NotFound, Conflict, and InUse while a VM or a volume was made from it, or the newest
        version of a template names it.
        """
        async with turn(self.settings.store_dir):
            async with change(self.db, caller, "image.delete", target=ref) as unit:
                row = await _resolve(unit.session, caller.project, ref, lock=True)
                unit.target = row.id
                etags.expect(caller.if_match, wire(row), f"the image {row.name}")
                unit.before = wire(row).model_dump(mode="json")
                of_it = await described_by(unit.session, row.project, row.id)
                if of_it:
                    raise InUse(
                        f"the image {row.name} is what VMs of template {of_it[0]} are made of",
                        suggestion=f"change the template: nexus template update {of_it[0]}; "
                        f"or: nexus template rm {of_it[0]}",
                    )
                await _check_no_volume(unit.session, row)
                users = await _users(unit.session, row)
                if users:
                    raise InUse(
                        f"the image {row.name} is used by {_some(users)}",
                        suggestion=f"delete them first: nexus rm {users[0]}",
                    )
                snapshots = await _in_snapshots(unit.session, row)
                if snapshots:
                    raise InUse(
                        f"VMs of the snapshot {', '.join(snapshots[:3])} boot the image {row.name}",
                        suggestion=f"delete it first: nexus snapshot rm {snapshots[0]}",
                    )
                sha256 = row.sha256
                await unit.session.delete(row)
            await self.discard({sha256})

    async def put(self, unit: UnitOfWork, artifacts: Iterable[Artifact], source: str) -> Put:
        """Names built content, in the caller's transaction and turn.

        A name that exists moves to the new content; VMs keep what they were made from.
        """
        put = Put([], set())
        for artifact in artifacts:
            row = await unit.session.scalar(
                _named(unit.caller.project, artifact.kind, artifact.name).with_for_update()
            )
            if row is None:
                row = _new_row(unit, artifact, source)
            elif row.sha256 != artifact.blob.sha256:
                put.replaced.add(row.sha256)
                row.sha256 = artifact.blob.sha256
                row.size_bytes = artifact.blob.size_bytes
                row.source = source
            put.ids.append(row.id)
        return put

    async def sweep(self) -> int:
        """Removes all content that no image, VM or template needs; returns how much was removed."""
        async with turn(self.settings.store_dir):
            folder = self.settings.store_dir / "sha256"
            held = {file.name for file in folder.iterdir() if SHA256.fullmatch(file.name)}
            return await self.discard(held)

    async def discard(self, suspects: set[str]) -> int:
        """Removes those of ``suspects`` that nothing refers to. Only while holding the turn."""
        # A snapshot that goes may have left its contents to a VM that was made of it just before.
        async with self.db.read_still() as session:
            unnamed = suspects - set(await session.scalars(select(ImageRow.sha256)))
            if not unnamed:
                return 0
            needed: set[str] = set()
            kept = select(VmRow.kernel, VmRow.initrd, VmRow.rootfs, VmRow.drives)
            for *contents, drives in await session.execute(kept):
                contents += [drive.image for drive in drives]
                needed |= {image.sha256 for image in contents if image is not None}
            for held in await session.scalars(select(TemplateVersionRow.images)):
                needed |= {image.sha256 for image in held.every}
            for blueprint in await session.scalars(select(SnapshotRow.blueprint)):
                needed |= {image.sha256 for image in blueprint.images}
            begun = await session.scalars(select(VolumeRow.image))
            needed |= {image.sha256 for image in begun if image is not None}
        for sha256 in unnamed - needed:
            await to_thread.run_sync(self.store.remove, sha256)
        return len(unnamed - needed)


def check_name(name: str) -> None:
    """Raises ValidationFailed for a word that means something else where images are named."""
    if name in _NOT_NAMES or _IS_ID.match(name):
        raise ValidationFailed(
            f"{name} cannot be an image's name", suggestion="choose another name"
        )


def _refusal(error: ImageError) -> NexusError:
    """What the store or a check said, as an answer."""
    kinds: dict[type[ImageError], type[NexusError]] = {
        BadImage: ValidationFailed,
        ImageTooLarge: PayloadTooLarge,
    }
    return kinds.get(type(error), Conflict)(str(error), suggestion=error.suggestion)


def wire(row: ImageRow) -> Image:
    """An image as it is shown."""
    return Image(
        id=row.id,
        kind=row.kind,
        name=row.name,
        project=row.project,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        source=row.source,
        created_at=row.created_at,
    )


def _new_row(unit: UnitOfWork, artifact: Artifact, source: str) -> ImageRow:
    row = ImageRow(
        id=new_id(),
        project=unit.caller.project,
        kind=artifact.kind,
        name=artifact.name,
        sha256=artifact.blob.sha256,
        size_bytes=artifact.blob.size_bytes,
        source=source,
        created_at=unit.at,
    )
    unit.session.add(row)
    unit.target = row.id
    unit.after = wire(row).model_dump(mode="json")
    return row


def _named(project: str, kind: ImageKind, name: str) -> Select[ImageRow]:
    return select(ImageRow).where(
        ImageRow.project == project, ImageRow.kind == kind, ImageRow.name == name
    )


def _taken(kind: ImageKind, name: str, holder: str | None) -> NameTaken:
    which = f": it is {holder}" if holder else ""
    return NameTaken(
        f"there is a {kind} image named {name} already{which}",
        suggestion=f"choose another name, or remove it: nexus image rm {holder or name}",
    )


async def _resolve(
    session: AsyncSession, project: str, ref: str, *, lock: bool = False
) -> ImageRow:
    query = select(ImageRow).where(
        ImageRow.project == project, or_(ImageRow.id == ref, ImageRow.name == ref)
    )
    rows: Sequence[ImageRow] = (
        await session.scalars(query.with_for_update() if lock else query)
    ).all()
    by_id = [row for row in rows if row.id == ref]
    if by_id:
        return by_id[0]
    if not rows:
        raise NotFound(f"there is no image {ref}", suggestion="nexus image ls")
    if len(rows) > 1:
        choices = ", ".join(f"{row.kind} {row.id}" for row in rows)
        raise Conflict(f"{len(rows)} images are named {ref}", suggestion=f"give an id: {choices}")
    return rows[0]


async def described_by(session: AsyncSession, project: str, image_id: str) -> list[str]:
    """The names of the templates whose newest version names an image."""
    newest = (
        select(TemplateRow.name, TemplateVersionRow.images)
        .join(
            TemplateVersionRow,
            (TemplateVersionRow.template_id == TemplateRow.id)
            & (TemplateVersionRow.version == TemplateRow.version),
        )
        .where(TemplateRow.project == project)
        .order_by(TemplateRow.id)
    )
    found = await session.execute(newest)
    return [name for name, held in found if any(image.id == image_id for image in held.every)]


async def _users(session: AsyncSession, image: ImageRow) -> list[str]:
    """The names of the VMs that were made from an image."""
    found = await session.execute(
        select(VmRow.name, VmRow.drives, VmRow.kernel, VmRow.initrd, VmRow.rootfs).where(
            VmRow.project == image.project
        )
    )
    return [
        name
        for name, drives, *contents in found
        if any(
            content is not None and content.id == image.id
            for content in (*contents, *(drive.image for drive in drives))
        )
    ]


async def _in_snapshots(session: AsyncSession, image: ImageRow) -> list[str]:
    """The names of the snapshots whose clones need an image."""
    query = select(SnapshotRow.name, SnapshotRow.blueprint)
    found = await session.execute(query.where(SnapshotRow.project == image.project))
    return [
        name for name, blueprint in found if any(used.id == image.id for used in blueprint.images)
    ]


async def _check_no_volume(session: AsyncSession, image: ImageRow) -> None:
    """A volume needs it until its file is made, which nobody here knows."""
    query = select(VolumeRow.name, VolumeRow.image).where(VolumeRow.project == image.project)
    for name, content in await session.execute(query.order_by(VolumeRow.id)):
        if content is not None and content.id == image.id:
            raise InUse(
                f"the image {image.name} is used by volume {name}",
                suggestion=f"delete it first: nexus volume rm {name}",
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"VM {shown}" if len(names) <= 3 else f"VMs {shown} and {len(names) - 3} more"
