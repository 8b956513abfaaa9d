"""Image builds as users see them: asked for here, run by ``pipelines/builds.py``."""

from datetime import UTC, datetime

from sqlalchemy import select, text

from nexus.api.common import Created, Page
from nexus.api.errors import NotFound
from nexus.api.images import BuildState, ImageBuild, ImageBuildOptions, ImageRecipe
from nexus.ids import new_id
from nexus.manager.db.session import Database
from nexus.manager.db.tables import ImageBuildRow
from nexus.manager.services.images import check_name
from nexus.manager.uow import Caller, change

ACTIVE: tuple[BuildState, ...] = ("queued", "running")

_LOCK = 7361990238
"""The PostgreSQL advisory lock under which builds are asked for."""


async def start(
    db: Database,
    caller: Caller,
    recipe: ImageRecipe,
    options: ImageBuildOptions | None = None,
) -> ImageBuild:
    """Queues a build; while the same one is queued or running, that one is the answer.

    Raises ValidationFailed for a name that no image can have.
    """
    options = options or ImageBuildOptions()
    if options.name is not None:
        check_name(options.name)
    async with change(db, caller, "image_build.create") as unit:
        if not db.is_sqlite:
            await unit.session.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        active = await unit.session.scalars(
            select(ImageBuildRow).where(
                ImageBuildRow.project == caller.project,
                ImageBuildRow.recipe == recipe,
                ImageBuildRow.state.in_(ACTIVE),
            )
        )
        row = next((found for found in active if found.options == options), None)
        if row is None:
            row = ImageBuildRow(
                id=new_id(),
                project=caller.project,
                recipe=recipe,
                options=options,
                state="queued",
                progress=0.0,
                step="waiting",
                images=[],
                actor=caller.actor,
                request_id=caller.request_id,
                created_at=unit.at,
                updated_at=unit.at,
                next_attempt_at=datetime.now(UTC),
                attempts=0,
            )
            unit.session.add(row)
        unit.target = row.id
        unit.after = {"recipe": recipe, **options.model_dump(mode="json", exclude_defaults=True)}
        build = wire(row)
        unit.answer = lambda: Created[ImageBuild](id=build.id, item=build)
        return build


async def find(db: Database, project: str, *, cursor: str | None, limit: int) -> Page[ImageBuild]:
    """One page, the newest first."""
    query = select(ImageBuildRow).where(ImageBuildRow.project == project)
    if cursor is not None:
        query = query.where(ImageBuildRow.id < cursor)
    async with db.read() as session:
        query = query.order_by(ImageBuildRow.id.desc()).limit(limit + 1)
        rows = (await session.scalars(query)).all()
    items = [wire(row) for row in rows[:limit]]
    return Page(items=items, next_cursor=items[-1].id if len(rows) > limit else None)


async def get(db: Database, project: str, build_id: str) -> ImageBuild:
    """Raises NotFound."""
    async with db.read() as session:
        row = await session.get(ImageBuildRow, build_id)
    if row is None or row.project != project:
        raise NotFound(f"there is no build {build_id}", suggestion="nexus image build debian-cloud")
    return wire(row)


def wire(row: ImageBuildRow) -> ImageBuild:
    """A build as it is shown."""
    return ImageBuild(
        id=row.id,
        recipe=row.recipe,
        options=row.options,
        state=row.state,
        progress=row.progress,
        step=row.step,
        error=row.error,
        images=row.images,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
