"""Parameters that routes share."""

from typing import Annotated

from fastapi import Depends, Path, Query

from nexus.api.common import Uuid, VmName
from nexus.api.guest import GuestPath
from nexus.api.vms import WaitState
from nexus.manager.security import Principal, require

WAIT_S = 60.0

VmRef = Annotated[VmName, Path(description="A VM's id, or its name.")]
Writer = Annotated[Principal, require("vms:write")]
Wait = Annotated[WaitState | None, Query(description="Answer when the VM is so.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many items.")]
IdCursor = Annotated[Uuid | None, Query(description="``next_cursor`` of the page before.")]
Project = Annotated[
    str | None,
    Query(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="The token's own project."),
]
_HOLDS = "How long ``wait`` holds, in seconds; 60 unless given."


async def wait_seconds(
    timeout: Annotated[
        float | None, Query(gt=0, le=600, allow_inf_nan=False, description=_HOLDS)
    ] = None,
    timeout_s: Annotated[
        float | None,
        Query(gt=0, le=600, allow_inf_nan=False, description="The same as ``timeout``."),
    ] = None,
) -> float:
    """``?timeout=``, else its older name."""
    given = timeout if timeout is not None else timeout_s
    return WAIT_S if given is None else given


Wait_s = Annotated[float, Depends(wait_seconds)]
"""How long ``wait`` holds."""
StopTimeout_s = Annotated[
    float,
    Query(
        ge=0,
        le=600,
        allow_inf_nan=False,
        description="How long the guest has to power off before its VMM is killed, in seconds.",
    ),
]
InGuest = Annotated[GuestPath, Query(description="An absolute path inside the guest.")]
STOP_TIMEOUT_S = 10.0
