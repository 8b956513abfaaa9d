"""Builds in the background: one at a time, registered whole, and begun anew after a crash."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from pydantic import ValidationError

from nexus.api.errors import ValidationFailed
from nexus.api.images import ImageBuild, ImageBuildCreate, ImageBuildOptions, ImageRecipe
from nexus.manager.config import Settings
from nexus.manager.db.session import Database
from nexus.manager.db.tables import ImageBuildRow
from nexus.manager.pipelines.builds import MAX_ATTEMPTS, BuildPipeline
from nexus.manager.services import builds
from nexus.manager.services.images import Images
from nexus.manager.uow import Caller

pytestmark = pytest.mark.anyio

CALLER = Caller(actor="admin", project="default", request_id="r", permission="images:write")
RECIPE: ImageRecipe = "busybox"

SCRIPT = """
import json, pathlib, sys, time
out, content, gate = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
print(json.dumps({"progress": 0.25, "step": "building"}), flush=True)
while gate and not pathlib.Path(gate).exists():
    time.sleep(0.01)
if content == "fail":
    print(json.dumps({"error": "no mirror", "suggestion": "check the network"}), flush=True)
    sys.exit(1)
(out / "rootfs").write_text(content)
artifact = {"kind": "rootfs", "name": "busybox", "path": str(out / "rootfs")}
print(json.dumps({"artifacts": [artifact]}), flush=True)
"""


class Recipes:
    """A real program in the place of a recipe: makes ``content`` once ``gate`` exists."""

    def __init__(self) -> None:
        self.content = "first"
        self.gate: Path | None = None
        self.begun = 0

    def command(self, _recipe: ImageRecipe, _options: ImageBuildOptions, out: Path) -> list[str]:
        self.begun += 1
        return [sys.executable, "-c", SCRIPT, str(out), self.content, str(self.gate or "")]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env({"NEXUS_DATA_DIR": str(tmp_path)})


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings.database_url)
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def images(db: Database, settings: Settings) -> Images:
    return Images.of(db, settings)


@pytest.fixture
def recipes() -> Recipes:
    return Recipes()


@asynccontextmanager
async def working(images: Images, recipes: Recipes) -> AsyncIterator[BuildPipeline]:
    """A pipeline at work; leaving the block kills it as a stopped manager would."""
    pipeline = BuildPipeline(images.db, images, "me", command=recipes.command)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.run)
        yield pipeline
        tasks.cancel_scope.cancel()


async def until(db: Database, build_id: str, *states: str, step: str = "") -> ImageBuild:
    with anyio.fail_after(60):
        while True:
            build = await builds.get(db, "default", build_id)
            if build.state in states and step in build.step:
                return build
            await anyio.sleep(0.02)


async def build(db: Database, pipeline: BuildPipeline) -> ImageBuild:
    started = await builds.start(db, CALLER, RECIPE)
    pipeline.hint()
    return await until(db, started.id, "succeeded", "failed")


async def test_a_build_registers_what_it_made(
    db: Database, images: Images, recipes: Recipes
) -> None:
    async with working(images, recipes) as pipeline:
        done = await build(db, pipeline)
        assert (done.state, done.progress, done.error) == ("succeeded", 1.0, None)
        image = await images.get("default", "busybox")
        assert done.images == [image.id]
        assert image.source == "recipe:busybox"
        assert images.store.path(image.sha256).read_text() == "first"
    assert list((images.settings.data_dir / "builds").iterdir()) == []


async def test_the_same_content_again_changes_nothing(
    db: Database, images: Images, recipes: Recipes
) -> None:
    async with working(images, recipes) as pipeline:
        first = await build(db, pipeline)
        image = await images.get("default", "busybox")
        second = await build(db, pipeline)
        assert second.id != first.id
        assert second.images == first.images
        assert await images.get("default", "busybox") == image


async def test_other_content_takes_the_name_over(
    db: Database, images: Images, recipes: Recipes
) -> None:
    async with working(images, recipes) as pipeline:
        await build(db, pipeline)
        old = await images.get("default", "busybox")
        recipes.content = "second"
        await build(db, pipeline)
        new = await images.get("default", "busybox")
        assert new.id == old.id
        assert images.store.path(new.sha256).read_text() == "second"
        with anyio.fail_after(10):
            while images.store.has(old.sha256):  # noqa: ASYNC110 # removed after the row's end
                await anyio.sleep(0.01)


async def test_one_recipe_is_built_once_at_a_time(
    db: Database, images: Images, recipes: Recipes, tmp_path: Path
) -> None:
    recipes.gate = tmp_path / "gate"
    queued = await builds.start(db, CALLER, RECIPE)
    assert (await builds.start(db, CALLER, RECIPE)).id == queued.id
    async with working(images, recipes):
        running = await until(db, queued.id, "running", step="building")
        assert running.progress == 0.25
        assert (await builds.start(db, CALLER, RECIPE)).id == queued.id
        recipes.gate.touch()
        await until(db, queued.id, "succeeded")
        assert recipes.begun == 1
        assert (await builds.start(db, CALLER, RECIPE)).id != queued.id


async def test_builds_with_other_options_are_other_builds(
    db: Database, images: Images, recipes: Recipes
) -> None:
    plain = await builds.start(db, CALLER, "debian")
    options = ImageBuildOptions(name="web", packages=["nginx"], size_mib=512)
    web = await builds.start(db, CALLER, "debian", options)
    assert web.id != plain.id
    assert web.options == options
    same = ImageBuildOptions(name="web", packages=["nginx"], size_mib=512)
    assert (await builds.start(db, CALLER, "debian", same)).id == web.id
    assert (await builds.start(db, CALLER, "debian", ImageBuildOptions())).id == plain.id
    with pytest.raises(ValidationFailed):
        await builds.start(db, CALLER, "debian", ImageBuildOptions(name="uploads"))


@pytest.mark.parametrize(
    "body",
    [
        {"recipe": "busybox", "packages": ["nginx"]},
        {"recipe": "busybox", "size_mib": 512},
        {"recipe": "debian-cloud", "name": "x"},
        {"recipe": "debian", "packages": ["-y"]},
        {"recipe": "debian", "packages": ["a b"]},
        {"recipe": "debian", "packages": ["a,b"]},
        {"recipe": "debian", "packages": ["../x"]},
        {"recipe": "debian", "packages": ["x/y"]},
        {"recipe": "debian", "packages": ["curl"] * 201},
        {"recipe": "debian", "size_mib": 1},
        {"recipe": "debian", "size_mib": "512"},
        {"recipe": "debian", "name": "../x"},
    ],
)
def test_options_that_do_not_fit_are_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ImageBuildCreate.model_validate(body)


async def test_a_failure_is_told_with_its_cure_and_leaves_nothing(
    db: Database, images: Images, recipes: Recipes
) -> None:
    recipes.content = "fail"
    async with working(images, recipes) as pipeline:
        done = await build(db, pipeline)
        assert (done.state, done.error) == ("failed", "no mirror; check the network")
        recipes.content = "first"
        assert (await build(db, pipeline)).state == "succeeded"


async def test_a_build_goes_on_after_the_manager_was_stopped(
    db: Database, images: Images, recipes: Recipes, tmp_path: Path
) -> None:
    recipes.gate = tmp_path / "gate"
    queued = await builds.start(db, CALLER, RECIPE)
    async with working(images, recipes):
        await until(db, queued.id, "running", step="building")
    recipes.gate.touch()
    async with working(images, recipes):
        await until(db, queued.id, "succeeded")
    assert recipes.begun == 2
    assert list((images.settings.data_dir / "builds").iterdir()) == []


async def test_a_build_that_is_cut_off_each_time_fails_in_the_end(
    db: Database, images: Images, recipes: Recipes
) -> None:
    queued = await builds.start(db, CALLER, RECIPE)
    async with db.write() as session:
        row = await session.get(ImageBuildRow, queued.id)
        assert row is not None
        row.state, row.attempts = "running", MAX_ATTEMPTS
    async with working(images, recipes):
        failed = await until(db, queued.id, "failed")
    assert failed.error is not None
    assert "cut off" in failed.error
    assert recipes.begun == 0


async def test_who_lost_the_lease_changes_nothing(
    db: Database, images: Images, recipes: Recipes, tmp_path: Path
) -> None:
    recipes.gate = tmp_path / "gate"
    queued = await builds.start(db, CALLER, RECIPE)
    async with working(images, recipes):
        await until(db, queued.id, "running", step="building")
        async with db.write() as session:
            row = await session.get(ImageBuildRow, queued.id)
            assert row is not None
            row.lease_token, row.lease_owner = "other", "other"
            row.lease_expires_at = datetime.now(UTC) + timedelta(hours=1)
        recipes.gate.touch()
        with anyio.fail_after(30):
            folder = images.settings.data_dir / "builds"
            while list(folder.iterdir()):  # noqa: ASYNC110 # the loser's folder goes at its end
                await anyio.sleep(0.02)
        assert (await builds.get(db, "default", queued.id)).state == "running"
        page = await images.find("default", kind=None, name=None, cursor=None, limit=10)
        assert page.items == []


async def test_builds_are_listed_newest_first(db: Database) -> None:
    made = []
    for number in range(3):
        made.append((await builds.start(db, CALLER, RECIPE)).id)
        async with db.write() as session:
            row = await session.get(ImageBuildRow, made[number])
            assert row is not None
            row.state = "succeeded"
    first = await builds.find(db, "default", cursor=None, limit=2)
    rest = await builds.find(db, "default", cursor=first.next_cursor, limit=2)
    assert [item.id for item in first.items + rest.items] == made[::-1]
    assert rest.next_cursor is None
    assert json.loads(first.model_dump_json())["items"][0]["state"] == "succeeded"
