"""``/v1/vms/{id}/why``: why a VM is as it is, also after it is gone."""

from typing import Annotated

from fastapi import APIRouter

from nexus.api.common import Item
from nexus.api.why import VmWhy
from nexus.manager.routes.parts import VmRef
from nexus.manager.runtime import Nexus
from nexus.manager.security import Principal, require
from nexus.manager.services.why import why

router = APIRouter(prefix="/v1/vms", tags=["vms"])

Reader = Annotated[Principal, require("vms:read")]


@router.get("/{ref}/why")
async def explain(ref: VmRef, nexus: Nexus, principal: Reader) -> Item[VmWhy]:
    """State, since when, why, by whom, the end of its log and what to do next.

    A VM that was deleted is known by its id or its last name for as long as its events are kept.
    """
    return Item(item=await why(nexus.db, nexus.agents, ref, principal.project))
