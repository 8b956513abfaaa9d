"""The part of the wire double that tells of quotas and of space."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from nexus.api.common import Item
from nexus.api.quotas import ProjectQuota, Quota, Resources

if TYPE_CHECKING:
    from tests.client.wire import Wire

USED = Resources(vms=2, vcpu=3, mem_mib=512, disk_mib=1024)


def add_quota_routes(app: FastAPI, wire: "Wire", check: Callable[[Request], None]) -> None:
    """A project that has something and is limited in what was set."""
    held = {"limits": Quota(vms=5)}

    def quota(project: str) -> Item[ProjectQuota]:
        limits = held["limits"]
        return Item(item=ProjectQuota(project=project, limits=limits, used=USED, updated_at=None))

    @app.get("/v1/projects/{project}/quota")
    async def get_quota(request: Request, project: str) -> Item[ProjectQuota]:
        check(request)
        return quota(project)

    @app.put("/v1/projects/{project}/quota")
    async def set_quota(request: Request, project: str, body: Quota) -> Item[ProjectQuota]:
        check(request)
        held["limits"] = body
        return quota(project)
