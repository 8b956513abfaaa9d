"""The manager as an ASGI application: its parts, its background work, its routes."""

import contextlib
from collections.abc import AsyncIterator

import anyio
import structlog
from fastapi import FastAPI
from sqlalchemy import select

from nexus import httpd, metrics
from nexus.ids import new_id
from nexus.manager import methods, openapi, security
from nexus.manager.agents import Agents
from nexus.manager.config import Settings
from nexus.manager.counts import Counts
from nexus.manager.db import full
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.db.template_tables import PrebootRow, RolloutRow
from nexus.manager.feed import EventFeed
from nexus.manager.idempotency import Idempotency, prune_for_ever
from nexus.manager.pipelines import leases, retention
from nexus.manager.pipelines.builds import BuildPipeline
from nexus.manager.pipelines.contents import sweep_contents
from nexus.manager.pipelines.expiry import ExpiryPipeline
from nexus.manager.pipelines.hosts import HostPipeline
from nexus.manager.pipelines.networks import NetworkPush
from nexus.manager.pipelines.preboots import PrebootPipeline
from nexus.manager.pipelines.rollouts import RolloutPipeline
from nexus.manager.pipelines.snapshot_schedules import SchedulePipeline
from nexus.manager.pipelines.snapshots import SnapshotPipeline
from nexus.manager.pipelines.uploads import sweep_uploads
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.routes import (
    blobs,
    builds,
    events,
    health,
    hosts,
    images,
    networks,
    prometheus,
    proxy,
    quotas,
    rollouts,
    snapshot_archives,
    snapshots,
    templates,
    uploads,
    usage,
    vm_actions,
    vm_bulk,
    vm_console,
    vm_devices,
    vm_doctor,
    vm_exec,
    vm_files,
    vm_forwards,
    vm_snapshot_schedule,
    vm_snapshots,
    vm_why,
    vms,
    volumes,
)
from nexus.manager.runtime import Runtime
from nexus.manager.services.forwards import Forwards
from nexus.manager.services.gauges import Gauges
from nexus.manager.services.guests import GuestService
from nexus.manager.services.hosts import HostService
from nexus.manager.services.images import Images
from nexus.manager.services.networks import Networks
from nexus.manager.services.quotas import Quotas
from nexus.manager.services.rollouts import Rollouts
from nexus.manager.services.snapshot_archives import SnapshotArchives
from nexus.manager.services.snapshot_schedules import SnapshotSchedules
from nexus.manager.services.snapshot_use import SnapshotUse
from nexus.manager.services.snapshots import Snapshots
from nexus.manager.services.templates import Templates
from nexus.manager.services.tokens import ensure_admin_token, ensure_host_token, lookup_in
from nexus.manager.services.uploads import Uploads
from nexus.manager.services.usage import UsageService
from nexus.manager.services.vm_bulk import VmBulk
from nexus.manager.services.vm_creation import VmCreation
from nexus.manager.services.vm_devices import VmDevices
from nexus.manager.services.vms import VmService
from nexus.manager.services.volume_attachments import VolumeAttachments
from nexus.manager.services.volume_snapshots import VolumeSnapshots
from nexus.manager.services.volumes import Volumes
from nexus.manager.verify import Verifier
from nexus.manager.waiters import Waiters

log = structlog.get_logger("manager")

ROUTERS = (
    health.router,
    prometheus.router,
    vms.router,
    events.router,
    vm_bulk.router,
    vm_actions.router,
    vm_devices.router,
    vm_doctor.router,
    vm_forwards.router,
    vm_snapshots.router,
    vm_snapshot_schedule.router,
    vm_console.router,
    vm_why.router,
    vm_exec.router,
    vm_files.router,
    proxy.router,
    hosts.router,
    networks.router,
    volumes.router,
    snapshot_archives.router,
    snapshots.router,
    quotas.router,
    usage.router,
    templates.router,
    rollouts.router,
    blobs.router,
    builds.router,
    uploads.router,
    images.router,
)


def make_runtime(settings: Settings) -> Runtime:
    """The parts of a manager; none of them has done anything yet."""
    db = Database(settings.database_url)
    instance = new_id()
    token_file = settings.agent_token_file
    agents = Agents(token_file.read_text().strip() if token_file else None)
    waiters = Waiters()
    images_service = Images.of(db, settings)
    feed = EventFeed(db)
    db.on_commit.append(feed.hint)
    counts = Counts()
    pipeline = VmPipeline(db, agents, waiters, instance, counts)
    expiry = ExpiryPipeline(db, pipeline)
    network_push = NetworkPush(db, waiters)
    creation = VmCreation(db, pipeline, expiry, settings)
    snapshot_pipeline = SnapshotPipeline(db, agents, waiters, instance, counts)
    preboot_pipeline = PrebootPipeline(db, agents, creation, pipeline, snapshot_pipeline, instance)
    rollout_pipeline = RolloutPipeline(db, agents, pipeline, waiters, settings, instance)
    return Runtime(
        settings=settings,
        db=db,
        instance=instance,
        verifier=Verifier(lookup_in(db)),
        agents=agents,
        waiters=waiters,
        pipeline=pipeline,
        expiry=expiry,
        creation=creation,
        vms=VmService(db, pipeline),
        bulk=VmBulk(db, pipeline, waiters),
        devices=VmDevices(db, pipeline),
        guests=GuestService(db, agents),
        network_push=network_push,
        networks=Networks(db, network_push),
        forwards=Forwards(db, network_push, settings.own_ports),
        volumes=Volumes(db, agents, pipeline),
        volume_snapshots=VolumeSnapshots(db, agents),
        attachments=VolumeAttachments(db, pipeline),
        snapshot_pipeline=snapshot_pipeline,
        snapshots=Snapshots(db, agents, snapshot_pipeline, waiters),
        snapshot_use=SnapshotUse(db, creation, pipeline),
        snapshot_schedules=SnapshotSchedules(db),
        snapshot_archives=SnapshotArchives(db, agents, snapshot_pipeline),
        schedule_pipeline=SchedulePipeline(db, snapshot_pipeline),
        quotas=Quotas(db),
        usage=UsageService(db, images_service.store),
        templates=Templates(db, images_service, creation, counts, preboot_pipeline.hint),
        preboot_pipeline=preboot_pipeline,
        rollout_pipeline=rollout_pipeline,
        rollouts=Rollouts(db, rollout_pipeline.hint),
        hosts=HostService(db),
        images=images_service,
        uploads=Uploads.of(db, images_service),
        builds=BuildPipeline(db, images_service, instance),
        feed=feed,
        counts=counts,
        gauges=Gauges(db, counts),
    )


def create_app(settings: Settings) -> FastAPI:
    """The application. Its lifespan migrates the database and runs the pipelines."""
    app = FastAPI(
        title="Nexus",
        version=metrics.installed(),
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    runtime = make_runtime(settings)
    app.state.runtime = runtime
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(Idempotency, db=runtime.db, instance=runtime.instance)
    security.install(app, runtime.verifier)
    app.add_middleware(proxy.ProxyBound)
    httpd.install(app)
    app.add_middleware(metrics.Measured, http=runtime.counts.http)
    full.install(app)
    security.check_routes(app)
    methods.install(app)
    openapi.install(app)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    runtime: Runtime = app.state.runtime
    try:
        await start(runtime)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.pipeline.run)
            tasks.start_soon(runtime.builds.run)
            tasks.start_soon(runtime.snapshot_pipeline.run)
            tasks.start_soon(runtime.schedule_pipeline.run)
            tasks.start_soon(runtime.feed.run)
            tasks.start_soon(retention.run, runtime.db, runtime.settings.events_keep_days)
            tasks.start_soon(sweep_uploads, runtime.uploads)
            tasks.start_soon(sweep_contents, runtime.images)
            tasks.start_soon(runtime.expiry.run)
            tasks.start_soon(runtime.rollout_pipeline.run)
            tasks.start_soon(runtime.preboot_pipeline.run)
            tasks.start_soon(_host_pipeline(runtime).run)
            tasks.start_soon(prune_for_ever, runtime.db)
            yield
            tasks.cancel_scope.cancel()
    finally:
        await runtime.agents.close()
        await runtime.db.close()


async def start(runtime: Runtime) -> None:
    """What must be true before the first request: schema, admin's token, no dead leases."""
    await runtime.db.migrate()
    await ensure_admin_token(runtime.db, runtime.settings.admin_token_file)
    await ensure_host_token(runtime.db, runtime.settings.host_token_file)
    if runtime.db.is_sqlite:
        # A manager on SQLite is alone, so every lease is one of a process that died.
        async with runtime.db.write() as session:
            await leases.drop_all(session, VmRow)
            await leases.drop_all(session, SnapshotRow)
            await leases.drop_all(session, RolloutRow)
            await leases.drop_all(session, PrebootRow)
    async with runtime.db.read() as session:
        for host in await session.scalars(select(HostRow)):
            runtime.agents.learn(host.id, host.agent_url)


def _host_pipeline(runtime: Runtime) -> HostPipeline:
    settings = runtime.settings
    return HostPipeline(
        runtime.db,
        runtime.agents,
        runtime.pipeline,
        runtime.network_push,
        settings.agent_url,
        heals=not settings.reconciler_disabled,
    )
