"""When a VMM that ended by itself is started again: pure rules, no I/O.

The agent decides this, not the manager: a VM that died at night runs again although nobody listens.
"""

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from nexus.api.common import Timestamp
from nexus.api.endings import FAILURES, ExitCause, RestartPolicy

MOST_S = 60.0
STEADY_S = 300.0
"""A guest that ran so long has recovered: its next end is the first one again."""


class Restarts(BaseModel):
    """What the rules remember of one boot; a boot that somebody asks for begins anew."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ran: bool = False
    """The guest was seen running. One that never ran is an error for a person, not for patience."""
    count: int = 0
    """Restarts since somebody asked for this boot."""
    in_a_row: int = 0
    """Those since the guest last ran steadily."""
    due_at: Timestamp | None = None
    """When the next one is due, if the policy wants one."""


FRESH = Restarts()


def wanted(policy: RestartPolicy, cause: ExitCause | None) -> bool:
    """Whether a guest that ended so is started again. What was asked for is never undone."""
    if cause is None or cause in ("stopped", "killed"):
        return False
    return policy == "always" or (policy == "on-failure" and cause in FAILURES)


def rest_s(in_a_row: int) -> float:
    """How long to wait after so many restarts in a row: not at all, then 1, 2, 4 … 60 s."""
    return 0.0 if in_a_row == 0 else min(MOST_S, 2.0 ** min(in_a_row - 1, 16))


def after_start(restarts: Restarts) -> Restarts:
    """The guest runs."""
    return restarts.model_copy(update={"ran": True, "due_at": None})


def after_end(restarts: Restarts, ran_for: timedelta, now: datetime) -> Restarts:
    """The VMM ended after the guest had run for ``ran_for``."""
    in_a_row = 0 if ran_for.total_seconds() >= STEADY_S else restarts.in_a_row
    due_at = now + timedelta(seconds=rest_s(in_a_row))
    return restarts.model_copy(update={"in_a_row": in_a_row, "due_at": due_at})


def before_attempt(restarts: Restarts, now: datetime) -> Restarts:
    """A restart is about to be tried; ``due_at`` is for the next one, should this one fail."""
    in_a_row = restarts.in_a_row + 1
    return restarts.model_copy(
        update={
            "count": restarts.count + 1,
            "in_a_row": in_a_row,
            "due_at": now + timedelta(seconds=rest_s(in_a_row)),
        }
    )


def undone(restarts: Restarts, now: datetime) -> Restarts:
    """An attempt that turned out never to have begun is due at once and does not count."""
    return restarts.model_copy(
        update={
            "count": max(0, restarts.count - 1),
            "in_a_row": max(0, restarts.in_a_row - 1),
            "due_at": now,
        }
    )
