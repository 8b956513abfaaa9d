"""How VMs end, what follows, and when their time is up."""

import re
from typing import Annotated, Literal

from pydantic import AwareDatetime, BeforeValidator, Field

from nexus.api.common import Timestamp, Wire

RestartPolicy = Literal["never", "on-failure", "always"]
"""What follows when a guest ends without being asked to: ``on-failure`` starts it again after a
crash or a kernel panic, ``always`` also after it powered itself off or rebooted. What an operator
stopped stays stopped."""

ExitCause = Literal["guest_poweroff", "stopped", "killed", "crashed", "guest_panic", "guest_reboot"]
"""How a VMM ended: the guest powered itself off; it was asked to stop and did; it had to be
killed; it ended by itself with an error or by a signal nobody here sent; the guest's kernel
panicked, which ends a VMM as cleanly as a power-off does; or the guest rebooted, which Firecracker
does not tell from a power-off."""

FAILURES: frozenset[ExitCause] = frozenset({"crashed", "guest_panic"})
"""The endings that nobody wanted."""


class LastExit(Wire):
    """How a VM's VMM last ended."""

    at: Timestamp
    cause: ExitCause
    message: str


LONGEST_S = 10 * 366 * 86400
_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})")


def _only_rfc3339(value: object) -> object:
    if isinstance(value, str | int | float) and not (
        isinstance(value, str) and _RFC3339.fullmatch(value)
    ):
        raise ValueError("write a time with its zone, as in 2026-01-31T12:00:00Z")
    return value


Ttl_s = Annotated[int, Field(strict=True, ge=1, le=LONGEST_S)]
Deadline = Annotated[AwareDatetime, BeforeValidator(_only_rfc3339)]
"""RFC 3339; a number is not taken for a time."""
