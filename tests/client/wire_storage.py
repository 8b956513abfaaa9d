"""The part of the wire double that tells of quotas and of space."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from nexus.api.common import Item
from nexus.api.quotas import ProjectQuota, Quota, Resources
from nexus.api.usage import HostUse, ProjectUse, Space, Spaces, Usage

if TYPE_CHECKING:
    from tests.client.wire import Wire

USED = Resources(vms=2, vcpu=3, mem_mib=512, disk_mib=1024)


SPACE = Space(promised_mib=300, real_mib=12)
NOT_TOLD = Space(promised_mib=64, real_mib=None)
SPACES = Spaces(disks=SPACE, volumes=NOT_TOLD, snapshots=SPACE, images=SPACE)


def add_quota_routes(app: FastAPI, wire: "Wire", check: Callable[[Request], None]) -> None:
    """A project that has something and is limited in what was set."""
    held = {"limits": Quota(vms=5)}

    def quota(project: str) -> Item[ProjectQuota]:
        limits = held["limits"]
        return Item(item=ProjectQuota(project=project, limits=limits, used=USED, updated_at=None))

    @app.get("/v1/usage")
    async def usage(request: Request) -> Item[Usage]:
        check(request)
        project = ProjectUse(project="default", vms=2, vcpu=3, mem_mib=512, space=SPACES)
        host = HostUse(
            host_id=wire.host.id,
            name=wire.host.name,
            vms=3,
            space=SPACES,
            disk_mib=2048,
            disk_available_mib=1024,
            measured_at=None,
        )
        return Item(item=Usage(projects=[project], hosts=[host]))

    @app.get("/v1/projects/{project}/quota")
    async def get_quota(request: Request, project: str) -> Item[ProjectQuota]:
        check(request)
        return quota(project)

    @app.put("/v1/projects/{project}/quota")
    async def set_quota(request: Request, project: str, body: Quota) -> Item[ProjectQuota]:
        check(request)
        held["limits"] = body
        return quota(project)
