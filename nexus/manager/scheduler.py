"""Where a VM goes: a pure function from a request and the hosts to a placement."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nexus.api.errors import NoCapacity


@dataclass(frozen=True, slots=True)
class Request:
    """What a VM needs of a host."""

    vcpu: int
    mem_mib: int
    disk_mib: int = 0
    """The size of all disks. They take room only as they are written, so hosts promise more than
    they have; but no VM is given more than a host's whole disk."""


@dataclass(frozen=True, slots=True)
class HostRoom:
    """A host as placement sees it. ``promised_mem_mib`` is what its VMs were promised."""

    id: str
    healthy: bool
    mem_mib: int
    promised_mem_mib: int
    disk_mib: int = 0


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

    roomy = [host for host in healthy if host.disk_mib >= request.disk_mib]
    if not roomy:
        raise NoCapacity(
            f"disks of {request.disk_mib} MiB are asked for, and no host has more than "
            f"{max(host.disk_mib for host in healthy)} MiB",
            suggestion="ask for smaller drives, or a smaller root disk",
        )

    def left(host: HostRoom) -> float:
        return host.mem_mib * overcommit - host.promised_mem_mib

    best = min(roomy, key=lambda host: (-left(host), host.id))
    if left(best) < request.mem_mib:
        raise NoCapacity(
            f"{request.mem_mib} MiB of memory are asked for, and no host has more than "
            f"{max(0, int(left(best)))} MiB left",
            suggestion="ask for less (--mem), or delete VMs: nexus rm NAME",
        )
    return Placement(best.id)


def place_all(
    request: Request, count: int, hosts: Sequence[HostRoom], *, overcommit: float = 1.0
) -> list[Placement]:
    """``place`` for ``count`` requests alike, each seeing what the ones before it were promised.

    Raises NoCapacity when not all of them fit.
    """
    rooms = {host.id: host for host in hosts}
    placements: list[Placement] = []
    for number in range(count):
        try:
            placement = place(request, list(rooms.values()), overcommit=overcommit)
        except NoCapacity as error:
            if number == 0:
                raise
            raise NoCapacity(
                f"{count} VMs of {request.mem_mib} MiB are asked for, and there is room for "
                f"{number}; none was made",
                suggestion=f"ask for {number}, or for less memory each (--mem)",
            ) from error
        room = rooms[placement.host_id]
        promised_mem_mib = room.promised_mem_mib + request.mem_mib
        rooms[room.id] = replace(room, promised_mem_mib=promised_mem_mib)
        placements.append(placement)
    return placements
