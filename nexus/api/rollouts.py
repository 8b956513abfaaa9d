"""Rollouts: moving a template's VMs to one of its versions, some at a time."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from nexus.api.common import TagKey, TagValue, Timestamp, Uuid, Wire
from nexus.api.templates import VersionNumber

RolloutState = Literal["running", "halted", "done", "cancelled", "rolling_back", "rolled_back"]
MemberState = Literal[
    "pending",
    "updating",
    "done",
    "failed",
    "skipped",
    "reverting",
    "reverted",
    "not_reverted",
]
RolloutAction = Literal["halt", "resume", "cancel", "rollback"]

Percent = Annotated[str, StringConstraints(pattern=r"^(100|[1-9][0-9]?)%$")]
Batch = Annotated[int, Field(strict=True, ge=1, le=1000)] | Percent
"""So many VMs at a time, or such a part of them: ``2``, ``"25%"``."""
_Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]


class RolloutOptions(Wire):
    """How a rollout goes."""

    selector: Annotated[dict[TagKey, TagValue], Field(max_length=16)] = Field(default_factory=dict)
    """Only VMs that have all these tags; none are all of the template's."""
    batch: Batch = 1
    max_failures: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 0
    """With more failures than this it halts."""
    pause_s: _Seconds = 0.0
    """How long to rest between one batch and the next."""
    rootfs: Literal["keep", "replace"] = "keep"
    """Whether each VM keeps its root disk, or gets a fresh one where the version's image is another
    one; what was written on the old one is lost then."""
    health: Literal["running", "agent"] = "running"
    """When a VM counts as up: it runs; or its guest's agent answers as well."""
    steady_s: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 5.0
    """How long it must have run for that."""
    timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 120.0
    """How long it may take until then, its stop included."""


class RolloutCreate(RolloutOptions):
    version: VersionNumber | None = None
    """The newest when absent."""


class RolloutCounts(Wire):
    """How many VMs are in which state."""

    pending: int = 0
    updating: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    reverting: int = 0
    reverted: int = 0
    not_reverted: int = 0


class Rollout(Wire):
    id: Uuid
    project: str
    template_id: Uuid
    template: str
    version: int
    state: RolloutState
    """``halted`` waits for somebody; ``done``, ``cancelled`` and ``rolled_back`` are its ends."""
    reason: str | None
    """Why it is in its state."""
    options: RolloutOptions
    vms: RolloutCounts
    next_at: Timestamp | None
    """When the next batch begins, while it rests."""
    created_at: Timestamp
    updated_at: Timestamp
    created_by: str


class RolloutVm(Wire):
    """One VM of a rollout."""

    vm_id: Uuid
    vm_name: str
    state: MemberState
    message: str | None
    """Why it failed or was skipped."""
    former_version: int | None
    """Where it came from; null before it is touched."""
    begun_at: Timestamp | None
    ended_at: Timestamp | None
