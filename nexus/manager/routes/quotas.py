"""``/v1/projects/{project}/quota``."""

from typing import Annotated

from fastapi import APIRouter, Path, Request

from nexus.api.common import Item, ProjectName
from nexus.api.quotas import ProjectQuota, Quota
from nexus.manager.runtime import Nexus, caller_of
from nexus.manager.security import Principal, require, visible
from nexus.manager.uow import SYSTEM

router = APIRouter(prefix="/v1/projects/{project}/quota", tags=["quotas"])

Reader = Annotated[Principal, require("quotas:read")]
Writer = Annotated[Principal, require("quotas:write")]
Of = Annotated[ProjectName, Path(description="A project's name.")]


@router.get("")
async def get(nexus: Nexus, principal: Reader, project: Of) -> Item[ProjectQuota]:
    """What a project may have and what it has. Its own tokens see it, and so do admins."""
    is_admin = principal.role == "admin" and principal.project == SYSTEM.project
    if not is_admin:
        visible(principal, project)
    return Item(item=await nexus.quotas.get(project))


@router.put("")
async def put(
    request: Request, nexus: Nexus, principal: Writer, project: Of, body: Quota
) -> Item[ProjectQuota]:
    """Replaces all limits of a project; null limits nothing. What it has already stays."""
    caller = caller_of(request, principal, "quotas:write")
    return Item(item=await nexus.quotas.set(caller, project, body))
