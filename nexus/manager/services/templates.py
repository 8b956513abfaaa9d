"""Templates: making them, their versions, and VMs of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, Page
from nexus.api.errors import InUse, NameTaken, NoCapacity, NotFound, ValidationFailed
from nexus.api.templates import (
    Instantiated,
    SpecChange,
    Template,
    TemplateChange,
    TemplateCreate,
    TemplateDiff,
    TemplateImages,
    TemplateInstantiate,
    TemplatePreboot,
    TemplateVersion,
)
from nexus.api.vms import Vm, VmImage, VmSpec
from nexus.ids import new_id
from nexus.manager import devices, etags, keys, rollout_plan, specs
from nexus.manager.counts import Counts, Missed
from nexus.manager.db.columns import StoredImage, StoredImages
from nexus.manager.db.session import Database
from nexus.manager.db.template_tables import RolloutRow, TemplateRow, TemplateVersionRow
from nexus.manager.services import networks, preboots, vms
from nexus.manager.services.images import Images
from nexus.manager.services.pools import Pools
from nexus.manager.services.template_use import TemplateUse, held_of, stored_of
from nexus.manager.services.vm_creation import VmCreation
from nexus.manager.services.vm_images import choose, choose_over
from nexus.manager.turns import turn
from nexus.manager.uow import Caller, UnitOfWork, change

_OF_VMS_ALONE = ("start", "ttl")
"""What a VM that is there does not say of how it was made."""


class Templates:
    """The rules of templates. A version is written once and never changed."""

    def __init__(
        self,
        db: Database,
        images: Images,
        creation: VmCreation,
        counts: Counts,
        preboot_hint: Callable[[], None] = lambda: None,
    ) -> None:
        self.db = db
        self.preboot_hint = preboot_hint
        self.images = images
        self.creation = creation
        self.counts = counts
        self.pools = Pools(db, creation, counts, preboot_hint)

    async def create(self, caller: Caller, request: TemplateCreate) -> Template:
        """Version 1. Raises NameTaken, NotFound, ImageNotReady, ValidationFailed."""
        try:
            async with change(self.db, caller, "template.create") as unit:
                spec, images = await self._first(unit.session, caller.project, request)
                row = TemplateRow(
                    id=new_id(),
                    project=caller.project,
                    name=request.name,
                    version=0,
                    created_at=unit.at,
                    updated_at=unit.at,
                )
                unit.session.add(row)
                await unit.session.flush()
                version = _next(unit, row, spec, images, request)
                unit.answer = lambda: Created[Template](id=row.id, item=to_template(row, version))
                await unit.session.flush()
        except IntegrityError as error:
            raise NameTaken(
                f"there is a template named {request.name!r} already",
                suggestion=f"change it: nexus template update {request.name}; "
                "or choose another name",
            ) from error
        return to_template(row, version)

    async def _first(
        self, session: AsyncSession, project: str, request: TemplateCreate
    ) -> tuple[VmSpec, StoredImages]:
        if request.from_vm is None:
            spec = specs.whole(request.spec)
            images = stored_of(await choose(session, project, spec))
        else:
            vm = await vms.find(session, project, request.from_vm)
            spec = specs.changed(specs.spec_of(vm), request.spec)
            held, anew = held_of(specs.images_of(vm)), request.spec.model_fields_set
            images = stored_of(await choose_over(session, project, spec, held, anew))
        await _check(session, project, spec, images)
        return spec, images

    async def update(self, caller: Caller, ref: str, request: TemplateChange) -> Template:
        """A new version; the newest one as it is, if nothing would be different.

        Raises NotFound, ImageNotReady, ValidationFailed, PreconditionFailed.
        """
        async with change(self.db, caller, "template.update", target=ref) as unit:
            row = await find(unit.session, caller.project, ref, lock=True)
            newest = await find_version(unit.session, row, row.version)
            unit.target = row.id
            etags.expect(caller.if_match, to_template(row, newest), f"template {row.name!r}")
            spec = specs.changed(newest.spec, request.spec)
            anew, held = request.spec.model_fields_set, held_of(newest.images)
            chosen = await choose_over(unit.session, caller.project, spec, held, anew)
            images = stored_of(chosen)
            await _check(unit.session, caller.project, spec, images)
            preboot = newest.preboot if request.preboot is None else request.preboot
            pool = newest.pool if request.pool is None else request.pool
            before = (newest.spec, newest.images, newest.preboot, newest.pool)
            if (spec, images, preboot, pool) != before:
                unit.before = {"version": newest.version}
                wanted = request.model_copy(update={"preboot": preboot, "pool": pool})
                newest = _next(unit, row, spec, images, wanted)
                await preboots.look_again(unit.session, row.id, unit.at)
        return to_template(row, newest)

    async def delete(self, caller: Caller, ref: str) -> None:
        """The template with all its versions. Its VMs stay, and remember its name and version.

        Raises NotFound, PreconditionFailed, and InUse while one of its rollouts goes on.
        """
        async with turn(self.images.settings.store_dir):
            async with change(self.db, caller, "template.delete", target=ref) as unit:
                row = await find(unit.session, caller.project, ref, lock=True)
                newest = await find_version(unit.session, row, row.version)
                unit.target, unit.before = row.id, {"name": row.name, "version": row.version}
                etags.expect(caller.if_match, to_template(row, newest), f"template {row.name!r}")
                await _check_idle(unit.session, row)
                of_it = select(TemplateVersionRow.images).where(
                    TemplateVersionRow.template_id == row.id
                )
                every = [each for held in await unit.session.scalars(of_it) for each in held.every]
                await preboots.look_again(unit.session, row.id, unit.at)
                await unit.session.delete(row)
            await self.images.discard({image.sha256 for image in every})
        self.preboot_hint()

    async def get(self, project: str, ref: str) -> Template:
        """A template by its id or name. Raises NotFound."""
        async with self.db.read() as session:
            row = await find(session, project, ref)
            return to_template(row, await find_version(session, row, row.version))

    async def page(
        self, project: str, *, name: str | None, cursor: str | None, limit: int
    ) -> Page[Template]:
        """Templates in the order they were made; ``name`` is how their names begin."""
        query = (
            select(TemplateRow, TemplateVersionRow)
            .join(
                TemplateVersionRow,
                (TemplateVersionRow.template_id == TemplateRow.id)
                & (TemplateVersionRow.version == TemplateRow.version),
            )
            .where(TemplateRow.project == project)
        )
        if name is not None:
            query = query.where(TemplateRow.name.startswith(name, autoescape=True))
        if cursor is not None:
            query = query.where(TemplateRow.id > cursor)
        async with self.db.read() as session:
            rows = (await session.execute(query.order_by(TemplateRow.id).limit(limit + 1))).all()
        return Page(
            items=[to_template(row, version) for row, version in rows[:limit]],
            next_cursor=rows[limit - 1][0].id if len(rows) > limit else None,
        )

    async def version(self, project: str, ref: str, number: int | None) -> TemplateVersion:
        """One version, the newest without a number. Raises NotFound."""
        async with self.db.read() as session:
            row = await find(session, project, ref)
            return to_version(row, await find_version(session, row, number or row.version))

    async def versions(
        self, project: str, ref: str, *, cursor: int | None, limit: int
    ) -> Page[TemplateVersion]:
        """The versions of a template, oldest first. Raises NotFound."""
        async with self.db.read() as session:
            row = await find(session, project, ref)
            query = select(TemplateVersionRow).where(TemplateVersionRow.template_id == row.id)
            if cursor is not None:
                query = query.where(TemplateVersionRow.version > cursor)
            query = query.order_by(TemplateVersionRow.version).limit(limit + 1)
            found = (await session.scalars(query)).all()
        return Page(
            items=[to_version(row, version) for version in found[:limit]],
            next_cursor=str(found[limit - 1].version) if len(found) > limit else None,
        )

    async def diff(
        self, project: str, ref: str, before: int | None, after: int | None, vm: str | None
    ) -> TemplateDiff:
        """How a version differs from the one before it or from another, or a VM from its version.

        Raises NotFound.
        """
        async with self.db.read() as session:
            row = await find(session, project, ref)
            if vm is not None:
                made = await vms.find(session, project, vm)
                its_own = made.template_version if made.template_id == row.id else None
                old = await find_version(session, row, before or its_own or row.version)
                new, called = (specs.spec_of(made), specs.images_of(made)), f"VM {made.name}"
                without: Sequence[str] = _OF_VMS_ALONE
            else:
                number = after or row.version
                old = await find_version(session, row, before or max(1, number - 1))
                newer = await find_version(session, row, number)
                new, called, without = (newer.spec, newer.images), str(newer.version), ()
        found = specs.differences((old.spec, old.images), new, without=without)
        if vm is None and newer.preboot != old.preboot:
            found.append(SpecChange(field="preboot", before=old.preboot, after=newer.preboot))
        if vm is None and newer.pool != old.pool:
            found.append(SpecChange(field="pool", before=old.pool, after=newer.pool))
        return TemplateDiff(template=row.name, before=str(old.version), after=called, changes=found)

    async def instantiate(
        self, caller: Caller, ref: str, request: TemplateInstantiate
    ) -> tuple[list[Vm], TemplateVersion]:
        """VMs of a template. Raises NotFound, and what making a VM raises."""
        async with self.db.read() as session:
            row = await find(session, caller.project, ref)
            found = await find_version(session, row, request.version or row.version)
        version = to_version(row, found)
        use = TemplateUse(
            template_id=row.id,
            name=row.name,
            version=found.version,
            images=found.images,
            overrides=overrides_of(request),
            answer=lambda made: instantiated(made, version, request),
            preboot=found.preboot and found.version == row.version and specs.may_be_cloned(request),
        )
        spec = specs.request_of(specs.overridden(found.spec, request), request)
        if use.preboot and found.pool and spec.start:
            taken = await self.pools.take(caller, use, spec)
            if taken is not None:
                return taken, version
        try:
            made = await self.creation.create(spec, caller, use)
        except NoCapacity:
            if not use.preboot:
                raise
            # There is none left where such a VM was booted before: others boot for themselves.
            made = await self.creation.create(spec, caller, replace(use, preboot=False))
        if found.pool and found.version == row.version:
            fits = use.preboot and spec.start
            reason: Missed = "empty" if fits else "different"
            self.counts.missed(caller.project, row.name, len(made), reason)
        if use.preboot:
            self.preboot_hint()
        return made, version

    async def preboots(self, project: str, ref: str) -> Page[TemplatePreboot]:
        """Where VMs of the template were booted before, by host. Raises NotFound."""
        async with self.db.read() as session:
            row = await find(session, project, ref)
            return Page(items=await preboots.of_template(session, row.id))

    async def made_before(
        self, made: list[Vm], ref: str, project: str, done: keys.Done
    ) -> TemplateVersion:
        """The version that VMs of an earlier request came from. Raises ``done`` when it is gone."""
        number = made[0].template.version if made[0].template else None
        try:
            return await self.version(project, ref, number)
        except NotFound:
            raise done from None


def overrides_of(request: TemplateInstantiate) -> dict[str, Any]:
    """The fields of the spec that a request gave, as JSON."""
    given = set(specs.FIELDS) & request.model_fields_set
    return request.model_dump(mode="json", include=given, exclude_unset=True)


def instantiated(
    made: list[Vm], version: TemplateVersion, request: TemplateInstantiate
) -> Instantiated:
    """What an instantiate answers."""
    overrides = overrides_of(request)
    return Instantiated(
        id=made[0].id, item=made[0], items=made, template=version, overrides=overrides
    )


async def find(session: AsyncSession, project: str, ref: str, *, lock: bool = False) -> TemplateRow:
    """A template's row by id or name. Raises NotFound."""
    query = select(TemplateRow).where(TemplateRow.project == project)
    if lock:
        # Not against those who only rely on its being there, as rows of rollouts do.
        query = query.with_for_update(key_share=True)
    row = (await session.scalars(query.where(TemplateRow.id == ref))).one_or_none()
    if row is None:
        row = (await session.scalars(query.where(TemplateRow.name == ref))).one_or_none()
    if row is None:
        raise NotFound(f"there is no template {ref!r}", suggestion="nexus template ls")
    return row


async def _check_idle(session: AsyncSession, template: TemplateRow) -> None:
    """Raises InUse while a rollout of a template is not at its end; else none begins any more.

    Locks the rows of those that ended, which go with the template: their worker locks its row
    first and the template after it.
    """
    query = select(RolloutRow).where(RolloutRow.template_id == template.id).order_by(RolloutRow.id)
    for row in await session.scalars(query.with_for_update()):
        if row.state in rollout_plan.ACTIVE:
            raise InUse(
                f"a rollout of template {template.name!r} is not at its end",
                suggestion=f"nexus rollout cancel {row.id}",
            )


async def find_version(session: AsyncSession, row: TemplateRow, number: int) -> TemplateVersionRow:
    found = await session.get(TemplateVersionRow, (row.id, number))
    if found is None:
        raise NotFound(
            f"template {row.name!r} has no version {number}",
            suggestion=f"nexus template versions {row.name}",
        )
    return found


async def _check(session: AsyncSession, project: str, spec: VmSpec, images: StoredImages) -> None:
    """Raises what making a VM of it would raise, as far as that is known now."""
    specs.check(spec)
    request = specs.request_of(spec)
    devices.root_of(request, images.rootfs)
    devices.drives_of(request, images.drives, {})
    for nic in spec.nics:
        if nic.network is not None:
            await networks.find(session, project, nic.network)


def _next(
    unit: UnitOfWork,
    row: TemplateRow,
    spec: VmSpec,
    images: StoredImages,
    asked: TemplateCreate | TemplateChange,
) -> TemplateVersionRow:
    """Writes the next version. Raises ValidationFailed for a pool of what has to boot."""
    if asked.pool and not asked.preboot:
        raise ValidationFailed(
            "a pool holds clones of a VM that was booted before: it needs preboot",
            suggestion="ask for both, or leave pool out",
        )
    row.version += 1
    row.updated_at = unit.at
    version = TemplateVersionRow(
        template_id=row.id,
        version=row.version,
        spec=spec,
        images=images,
        preboot=bool(asked.preboot),
        pool=asked.pool or 0,
        note=asked.note,
        created_at=unit.at,
        created_by=unit.caller.actor,
    )
    unit.session.add(version)
    unit.target, unit.after = row.id, {"name": row.name, "version": row.version, "note": asked.note}
    return version


def to_template(row: TemplateRow, newest: TemplateVersionRow) -> Template:
    """A template as the API shows it."""
    return Template(
        id=row.id,
        name=row.name,
        project=row.project,
        version=newest.version,
        spec=newest.spec,
        images=_shown(newest.images),
        preboot=newest.preboot,
        pool=newest.pool,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def to_version(row: TemplateRow, version: TemplateVersionRow) -> TemplateVersion:
    """A version as the API shows it."""
    return TemplateVersion(
        template_id=row.id,
        name=row.name,
        version=version.version,
        spec=version.spec,
        images=_shown(version.images),
        preboot=version.preboot,
        pool=version.pool,
        note=version.note,
        created_at=version.created_at,
        created_by=version.created_by,
    )


def _shown(images: StoredImages) -> TemplateImages:
    return TemplateImages(
        kernel=_image(images.kernel),
        initrd=_image(images.initrd) if images.initrd else None,
        rootfs=_image(images.rootfs) if images.rootfs else None,
        drives={name: _image(image) for name, image in images.drives.items()},
    )


def _image(image: StoredImage) -> VmImage:
    return VmImage(id=image.id, kind=image.kind, name=image.name, sha256=image.sha256)
