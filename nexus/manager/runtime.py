"""What one manager process holds: one object, made at start, reached from every route."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from nexus.api.errors import BadRequest
from nexus.manager import etags
from nexus.manager.agents import Agents
from nexus.manager.config import Settings
from nexus.manager.counts import Counts
from nexus.manager.db.session import Database
from nexus.manager.feed import EventFeed
from nexus.manager.pipelines.builds import BuildPipeline
from nexus.manager.pipelines.expiry import ExpiryPipeline
from nexus.manager.pipelines.networks import NetworkPush
from nexus.manager.pipelines.preboots import PrebootPipeline
from nexus.manager.pipelines.rollouts import RolloutPipeline
from nexus.manager.pipelines.snapshot_schedules import SchedulePipeline
from nexus.manager.pipelines.snapshots import SnapshotPipeline
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.security import Permission, Principal
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
from nexus.manager.services.uploads import Uploads
from nexus.manager.services.usage import UsageService
from nexus.manager.services.vm_bulk import VmBulk
from nexus.manager.services.vm_creation import VmCreation
from nexus.manager.services.vm_devices import VmDevices
from nexus.manager.services.vms import VmService
from nexus.manager.services.volume_attachments import VolumeAttachments
from nexus.manager.services.volume_snapshots import VolumeSnapshots
from nexus.manager.services.volumes import Volumes
from nexus.manager.uow import SYSTEM, Caller
from nexus.manager.verify import Verifier
from nexus.manager.waiters import Waiters


@dataclass(slots=True)
class Runtime:
    """The parts of a running manager."""

    settings: Settings
    db: Database
    instance: str
    """This process's id: the owner of its leases."""
    verifier: Verifier
    agents: Agents
    waiters: Waiters
    pipeline: VmPipeline
    expiry: ExpiryPipeline
    creation: VmCreation
    vms: VmService
    bulk: VmBulk
    devices: VmDevices
    guests: GuestService
    network_push: NetworkPush
    networks: Networks
    forwards: Forwards
    volumes: Volumes
    snapshot_pipeline: SnapshotPipeline
    snapshots: Snapshots
    snapshot_use: SnapshotUse
    snapshot_schedules: SnapshotSchedules
    snapshot_archives: SnapshotArchives
    schedule_pipeline: SchedulePipeline
    quotas: Quotas
    usage: UsageService
    templates: Templates
    preboot_pipeline: PrebootPipeline
    rollout_pipeline: RolloutPipeline
    rollouts: Rollouts
    volume_snapshots: VolumeSnapshots
    attachments: VolumeAttachments
    hosts: HostService
    images: Images
    uploads: Uploads
    builds: BuildPipeline
    feed: EventFeed
    counts: Counts
    gauges: Gauges


async def runtime_of(connection: HTTPConnection) -> Runtime:
    """The runtime behind a request or a WebSocket.

    Async, as every dependency must be: FastAPI runs others in threads.
    """
    runtime = connection.app.state.runtime
    if not isinstance(runtime, Runtime):
        raise TypeError("the application has no runtime")
    return runtime


Nexus = Annotated[Runtime, Depends(runtime_of)]
"""A route's parameter: the runtime."""


def project_seen(principal: Principal) -> str | None:
    """The project of which a reader sees what is counted; None for an admin of the installation,
    who sees all of them."""
    is_admin = principal.role == "admin" and principal.project == SYSTEM.project
    return None if is_admin else principal.project


def caller_of(connection: HTTPConnection, principal: Principal, permission: Permission) -> Caller:
    """Who a unit of work acts for, from a request and its token's owner. Raises BadRequest for an
    ``If-Match`` with nothing that it could be about."""
    state = connection.scope["state"]
    if_match = etags.read(connection, "if-match")
    if if_match is not None and not connection.path_params:
        raise BadRequest(
            "If-Match says how one thing was seen, and this request names none in its path",
            suggestion="leave the header away, or send it with requests on the thing itself",
        )
    return Caller(
        actor=principal.actor,
        project=principal.project,
        request_id=state["request_id"],
        permission=permission,
        claim=state.get("claim"),
        if_match=if_match,
    )
