"""``/v1/vms/{id}/network-doctor``: what stands between a VM and its networks."""

from typing import Annotated

from fastapi import APIRouter

from nexus.api.common import Item
from nexus.api.doctor import NetworkDoctor
from nexus.manager.routes.parts import VmRef
from nexus.manager.runtime import Nexus
from nexus.manager.security import Principal, require
from nexus.manager.services.network_doctor import examine

router = APIRouter(prefix="/v1/vms", tags=["networks"])

Reader = Annotated[Principal, require("vms:read")]


@router.get("/{ref}/network-doctor")
async def diagnose(ref: VmRef, nexus: Nexus, principal: Reader) -> Item[NetworkDoctor]:
    """Bridge, TAP, rules, DHCP, guest and forwards; what is not as it should be has a cure.

    Changes nothing. Takes some seconds when the guest does not answer.
    """
    return Item(item=await examine(nexus.db, nexus.agents, ref, principal.project))
