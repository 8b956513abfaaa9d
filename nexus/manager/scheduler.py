"""Where a VM goes: a pure function from a request and the hosts to a placement."""

from collections.abc import Sequence
from dataclasses import dataclass

from nexus.api.errors import NoCapacity


@dataclass(frozen=True, slots=True)
class Request:
    """What a VM needs of a host."""

    vcpu: int
    mem_mib: int


@dataclass(frozen=True, slots=True)
class HostRoom:
    """A host as placement sees it. ``promised_mem_mib`` is what its VMs were promised."""

    id: str
    healthy: bool
    mem_mib: int
    promised_mem_mib: int


@dataclass(frozen=True, slots=True)
class Placement:
    host_id: str


def place(request: Request, hosts: Sequence[HostRoom], *, overcommit: float = 1.0) -> Placement:
    """The healthy host with the most memory left that holds the request; ties go to the lower id.

    Raises NoCapacity when there is none.
    """
    healthy = [host for host in hosts if host.healthy]
    if not healthy:
        raise NoCapacity("no healthy host", suggestion="start an agent, or look at: nexus host ls")

    def left(host: HostRoom) -> float:
        return host.mem_mib * overcommit - host.promised_mem_mib

    best = min(healthy, key=lambda host: (-left(host), host.id))
    if left(best) < request.mem_mib:
        raise NoCapacity(
            f"{request.mem_mib} MiB of memory are asked for, and no host has more than "
            f"{max(0, int(left(best)))} MiB left",
            suggestion="ask for less (--mem), or delete VMs: nexus rm NAME",
        )
    return Placement(best.id)
