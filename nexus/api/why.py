"""The answer to "why is this VM so?"."""

from typing import Literal

from pydantic import Field

from nexus.api.common import Timestamp, Uuid, Wire
from nexus.api.vms import LogSource, VmError, VmEvent, VmState

WhyState = VmState | Literal["deleted"]
"""``deleted``: the VM is gone, its events are not."""


class VmWhy(Wire):
    """Why a VM is as it is, in plain words, with what tells of it and what to type next."""

    vm_id: Uuid
    name: str
    state: WhyState
    since: Timestamp
    """When it came into this state, as far as its events go back."""
    summary: str
    """One sentence for people."""
    reason: str
    """The word of the event that brought it there: ``guest_poweroff``, ``failed`` …"""
    actor: str
    """Who caused that: a token's name, or ``system``."""
    request_id: str | None
    error: VmError | None
    log_source: LogSource | None
    log_tail: list[str] = Field(default_factory=list)
    """The last lines of the log that tells most."""
    log_missing: str | None = None
    """Why there are none."""
    next: list[str]
    """Commands, the most useful first."""
    events: list[VmEvent]
    """The last ones, oldest first."""
