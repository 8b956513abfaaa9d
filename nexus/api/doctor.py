"""The answer to "why does this VM reach nothing?": what was looked at, and what to do about it."""

from typing import Literal

from pydantic import Field

from nexus.api.common import Uuid, Wire
from nexus.api.networks import HostForward

Outcome = Literal["ok", "bad", "unknown"]

CheckStep = Literal[
    "host",
    "vm",
    "network",
    "bridge",
    "uplink",
    "tap",
    "addresses",
    "rules",
    "forwarding",
    "dhcp",
    "arp",
    "guest",
    "forward",
]


class Check(Wire):
    """One thing between a guest and its network."""

    step: CheckStep
    iface: str | None = None
    """The NIC that it is about; null for what all share."""
    outcome: Outcome
    message: str
    suggestion: str | None = None
    """What to do when it is bad."""


class Diagnosis(Wire):
    """What an agent found of one VM."""

    checks: list[Check]
    forwards: list[HostForward] = Field(default_factory=list)
    """The forwards to this VM that the host was told of."""


class NetworkDoctor(Wire):
    """All checks of one VM, in the order in which a packet would need them."""

    vm_id: Uuid
    name: str
    healthy: bool
    """Whether none is bad."""
    checks: list[Check]
