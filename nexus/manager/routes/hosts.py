"""``/v1/hosts``."""

from typing import Annotated

from fastapi import APIRouter

from nexus.api.common import Item, Page, Uuid
from nexus.api.hosts import Host
from nexus.manager.routes.parts import IdCursor, Limit
from nexus.manager.runtime import Nexus
from nexus.manager.security import Principal, require

router = APIRouter(prefix="/v1/hosts", tags=["hosts"])

Reader = Annotated[Principal, require("hosts:read")]


@router.get("")
async def list_hosts(
    nexus: Nexus, _principal: Reader, cursor: IdCursor = None, limit: Limit = 100
) -> Page[Host]:
    """Every machine with an agent."""
    items, following = await nexus.hosts.page(cursor=cursor, limit=limit)
    return Page(items=items, next_cursor=following)


@router.get("/{host_id}")
async def get(host_id: Uuid, nexus: Nexus, _principal: Reader) -> Item[Host]:
    """One host, with what its disks, volumes, snapshots and images take."""
    host = await nexus.hosts.get(host_id)
    return Item(item=host.model_copy(update={"use": await nexus.usage.of_host(host_id)}))
