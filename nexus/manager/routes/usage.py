"""``/v1/usage``."""

from typing import Annotated

from fastapi import APIRouter

from nexus.api.common import Item
from nexus.api.usage import Usage
from nexus.manager.runtime import Nexus
from nexus.manager.security import Principal, require
from nexus.manager.uow import SYSTEM

router = APIRouter(prefix="/v1/usage", tags=["quotas"])

Reader = Annotated[Principal, require("quotas:read")]


@router.get("")
async def get(nexus: Nexus, principal: Reader) -> Item[Usage]:
    """What disks, volumes, snapshots and images take: of the token's project, or for an admin of
    the installation of every project; and of every host."""
    is_admin = principal.role == "admin" and principal.project == SYSTEM.project
    return Item(item=await nexus.usage.get(None if is_admin else principal.project))
