"""Addresses for NICs: which one is next, and the MAC that belongs to a VM. Pure functions."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network

from nexus.api.errors import AddressPoolExhausted
from nexus.api.networks import ends_of


def free_addresses(
    cidr: str,
    gateway: str | None,
    used: Collection[int],
    after: int,
    reserved: Sequence[str] = (),
) -> Iterator[IPv4Address]:
    """The free addresses behind ``after``, going round once; so a freed one rests for a while.

    Never the network's own address, its first, its gateway or its broadcast, and none that is
    reserved. Raises AddressPoolExhausted when they have come to an end.
    """
    ranges = [ends_of(text) for text in reserved]
    subnet = IPv4Network(cidr, strict=False)
    # The first is the host's, whether or not it is there now: DHCP may be switched on later.
    first, last = int(subnet.network_address) + 2, int(subnet.broadcast_address) - 1
    taken = {*used, int(IPv4Address(gateway))} if gateway else set(used)
    size = last - first + 1
    begin = after + 1 - first if first <= after <= last else 0
    step = 0
    while step < size:
        candidate = first + (begin + step) % size
        # A reserved range is left in one step: half of a /8 would take seconds.
        over = max((end for start, end in ranges if start <= candidate <= end), default=None)
        if over is not None:
            step += min(over, last) - candidate + 1
            continue
        if candidate not in taken:
            yield IPv4Address(candidate)
        step += 1
    raise AddressPoolExhausted(
        f"every address of {cidr} is in use" + (" or reserved" if ranges else ""),
        suggestion="delete VMs (nexus rm NAME), or use another network (nexus network create)",
    )


def with_prefix(address: IPv4Address, cidr: str) -> str:
    """``10.77.0.5/20``"""
    return f"{address}/{IPv4Network(cidr, strict=False).prefixlen}"


def mac_for(vm_id: str, iface: str) -> str:
    """A locally administered unicast MAC, the same each time for one NIC of one VM."""
    digest = hashlib.sha256(f"{vm_id}/{iface}".encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))
