"""``/v1/usage``."""

from typing import Annotated

from fastapi import APIRouter

from nexus.api.common import Item
from nexus.api.usage import Usage
from nexus.manager.runtime import Nexus, project_seen
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/usage", tags=["quotas"])

Reader = Annotated[Principal, require("quotas:read")]


@router.get("")
async def get(nexus: Nexus, principal: Reader) -> Item[Usage]:
    """What disks, volumes, snapshots and images take: of the token's project, or for an admin of
    the installation of every project; and of every host."""
    return Item(item=await nexus.usage.get(project_seen(principal)))
