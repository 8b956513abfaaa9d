"""Image builds in the background: claim a row, run the build as a program, register what it made.

A build is cut off with its manager (``setpriv --pdeathsig``) and begun anew from its row. See
docs/images.md.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import structlog
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import NexusError
from nexus.api.images import ImageBuildOptions, ImageRecipe
from nexus.images.errors import ImageError
from nexus.manager import oci_sources
from nexus.manager.db.session import Database
from nexus.manager.db.tables import ImageBuildRow
from nexus.manager.pipelines import leases
from nexus.manager.pipelines.builder import BuildFailed, Built, build_command, run_build
from nexus.manager.services.builds import ACTIVE
from nexus.manager.services.images import Artifact, Images
from nexus.manager.turns import turn
from nexus.manager.uow import Caller, change

log = structlog.get_logger("builds")

POLL_S = 5.0
"""How late a build begins whose hint was lost."""
MAX_RUNNING = 2
MAX_ATTEMPTS = 3
BUILD_TIMEOUT_S = 1800.0
REPORT_S = 0.3

Command = Callable[[ImageRecipe, ImageBuildOptions, Path], list[str]]


class _LeaseLost(Exception):
    """Another manager holds the build now; this one changes nothing."""


@dataclass(slots=True)
class _Job:
    """One build at work here."""

    id: str
    lease: str
    recipe: ImageRecipe
    options: ImageBuildOptions
    caller: Caller
    progress: float = 0.0
    step: str = ""


class BuildPipeline:
    """Runs the builds of one manager; ``run`` belongs into the server's task group."""

    def __init__(
        self,
        db: Database,
        images: Images,
        owner: str,
        *,
        command: Command = build_command,
        timeout_s: float = BUILD_TIMEOUT_S,
    ) -> None:
        self._db = db
        self._images = images
        self._owner = owner
        self._command = command
        self._timeout_s = timeout_s
        self._folder = images.settings.data_dir / "builds"
        self._hinted = anyio.Event()
        self._running: set[str] = set()

    def hint(self) -> None:
        """There may be a build to run."""
        self._hinted.set()

    async def run(self) -> None:
        """Works until cancelled. First it clears what an earlier process left."""
        if self._db.is_sqlite:
            async with self._db.write() as session:
                await leases.drop_all(session, ImageBuildRow)
            await to_thread.run_sync(shutil.rmtree, self._folder, True)
        async with anyio.create_task_group() as tasks:
            while True:
                self._hinted = anyio.Event()
                try:
                    for job in await self._claim():
                        self._running.add(job.id)
                        tasks.start_soon(self._work, job)
                except SQLAlchemyError:
                    log.exception("cannot read the builds; trying again")
                with anyio.move_on_after(POLL_S):
                    await self._hinted.wait()

    async def _claim(self) -> list[_Job]:
        free = MAX_RUNNING - len(self._running)
        if free <= 0:
            return []
        now = datetime.now(UTC)
        jobs = []
        async with self._db.write() as session:
            wanted = ImageBuildRow.state.in_(ACTIVE)
            for row in await leases.claim(session, ImageBuildRow, wanted, self._owner, now, free):
                row.attempts += 1
                row.updated_at = now
                if row.attempts > MAX_ATTEMPTS:
                    _fail(row, now, f"the build was cut off {MAX_ATTEMPTS} times; build it again")
                    continue
                row.state, row.progress, row.step = "running", 0.0, "starting"
                caller = Caller(row.actor, row.project, row.request_id, "images:write")
                jobs.append(_Job(row.id, row.lease_token or "", row.recipe, row.options, caller))
        return jobs

    async def _work(self, job: _Job) -> None:
        folder = self._folder / job.lease
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._report, job, tasks.cancel_scope)
                await self._build(job, folder)
                tasks.cancel_scope.cancel()
        except* _LeaseLost:
            log.warning("another manager has taken over the build", build=job.id)
        except* SQLAlchemyError:
            log.exception("the database failed during a build", build=job.id)
        finally:
            self._running.discard(job.id)
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(shutil.rmtree, folder, True)
            self.hint()

    async def _build(self, job: _Job, folder: Path) -> None:
        def said(progress: float, step: str) -> None:
            job.progress, job.step = progress, step

        try:
            folder.mkdir(parents=True)
            options = await self._staged(job, folder)
            argv = self._command(job.recipe, options, folder)
            built = await run_build(argv, said, timeout_s=self._timeout_s)
            job.step = "registering"
            await self._register(job, built)
        except (BuildFailed, ImageError, NexusError, OSError) as failure:
            log.warning("a build failed", build=job.id, recipe=job.recipe, error=str(failure))
            cure = getattr(failure, "suggestion", None)
            async with self._db.write() as session:
                row = await self._held(session, job)
                _fail(row, datetime.now(UTC), f"{failure}; {cure}" if cure else str(failure))

    async def _staged(self, job: _Job, folder: Path) -> ImageBuildOptions:
        """The build's options, with files under the image root copied into its folder."""
        if job.options.source is None:
            return job.options
        job.step = "copying the image"
        settings = self._images.settings
        source = await to_thread.run_sync(oci_sources.stage, settings, job.options.source, folder)
        return job.options.model_copy(update={"source": source})

    async def _register(self, job: _Job, built: list[Built]) -> None:
        """Content into the store, then names and the build's end in one transaction."""
        artifacts = [await self._keep(item) for item in built]
        async with turn(self._images.settings.store_dir):
            for item, artifact in zip(built, artifacts, strict=True):
                if not await to_thread.run_sync(self._images.store.has, artifact.blob.sha256):
                    await self._keep(item)
            async with change(self._db, job.caller, "image.build", target=job.id) as unit:
                row = await self._held(unit.session, job)
                source = job.options.source or f"recipe:{job.recipe}"
                put = await self._images.put(unit, artifacts, source)
                row.state, row.progress, row.step = "succeeded", 1.0, "done"
                row.images, row.error, row.updated_at = put.ids, None, unit.at
                leases.release(row)
                unit.target, unit.after = job.id, {"recipe": job.recipe, "images": put.ids}
            await self._images.discard(put.replaced)

    async def _keep(self, item: Built) -> Artifact:
        blob = await to_thread.run_sync(self._images.store.import_file, item.path)
        return Artifact(item.kind, item.name, blob)

    async def _report(self, job: _Job, scope: anyio.CancelScope) -> None:
        """Writes progress while it changes, and keeps the lease while it does not."""
        shown = (0.0, "starting")
        renewed = anyio.current_time()
        while True:
            await anyio.sleep(REPORT_S)
            now = anyio.current_time()
            if (job.progress, job.step) == shown and now - renewed < leases.RENEW_S:
                continue
            shown, renewed = (job.progress, job.step), now
            async with self._db.write() as session:
                row = await leases.held(session, ImageBuildRow, job.id, job.lease)
                if row is None:
                    scope.cancel()
                    return
                row.progress, row.step = shown
                row.updated_at = datetime.now(UTC)
                row.lease_expires_at = row.updated_at + timedelta(seconds=leases.LEASE_S)

    async def _held(self, session: AsyncSession, job: _Job) -> ImageBuildRow:
        row = await leases.held(session, ImageBuildRow, job.id, job.lease)
        if row is None:
            raise _LeaseLost
        return row


def _fail(row: ImageBuildRow, now: datetime, error: str) -> None:
    row.state, row.error, row.updated_at = "failed", error[:4000], now
    leases.release(row)
