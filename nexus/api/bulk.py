"""One action on many VMs, answered for each of them."""

from typing import Annotated, Literal

from pydantic import Field

from nexus.api.common import TagKey, TagValue, Uuid, VmName, Wire
from nexus.api.errors import ErrorCode

MOST = 1000
BulkAction = Literal["start", "stop", "pause", "resume", "reboot", "delete"]


class VmActions(Wire):
    """Which action, and on which VMs: those named in ``ids``, or those that have all the tags of
    ``selector``."""

    action: BulkAction
    ids: Annotated[list[VmName], Field(min_length=1, max_length=MOST)] | None = None
    """Ids or names."""
    selector: Annotated[dict[TagKey, TagValue], Field(min_length=1, max_length=16)] | None = None
    force: Annotated[bool, Field(strict=True)] = False
    """For ``stop`` and ``reboot``: kill the VMM at once."""
    stop_timeout_s: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] | None = None
    """For ``stop`` and ``reboot``: how long a guest has to power off before it is killed."""


class BulkDone(Wire):
    """A VM on which the action was taken, or for which there was nothing to do."""

    id: Uuid
    name: str
    ok: Literal[True] = True


class BulkError(Wire):
    code: ErrorCode
    message: str
    suggestion: str | None = None
    fault_message: str | None = None
    """The VMM's own words, when it was the VMM that refused."""


class BulkRefused(Wire):
    """A VM on which it was not, and why."""

    id: str
    """As the request named it, when there is no such VM."""
    name: str | None = None
    ok: Literal[False] = False
    error: BulkError


class BulkAnswer(Wire):
    """In the order of ``ids``, or oldest first."""

    items: list[BulkDone | BulkRefused]
