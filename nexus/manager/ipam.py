"""Addresses for NICs: which one is next, and the MAC that belongs to a VM. Pure functions."""

import hashlib
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network

from nexus.api.errors import AddressPoolExhausted


def free_addresses(
    cidr: str, gateway: str | None, used: Collection[int], after: int
) -> Iterator[IPv4Address]:
    """The free addresses behind ``after``, going round once; so a freed one rests for a while.

    Never the network's own address, its first, its gateway or its broadcast. Raises
    AddressPoolExhausted when they have come to an end.
    """
    subnet = IPv4Network(cidr, strict=False)
    # The first is the host's, whether or not it is there now: DHCP may be switched on later.
    first, last = int(subnet.network_address) + 2, int(subnet.broadcast_address) - 1
    taken = {*used, int(IPv4Address(gateway))} if gateway else set(used)
    size = last - first + 1
    begin = after + 1 - first if first <= after <= last else 0
    for step in range(max(0, size)):
        candidate = first + (begin + step) % size
        if candidate not in taken:
            yield IPv4Address(candidate)
    raise AddressPoolExhausted(
        f"every address of {cidr} is in use",
        suggestion="delete VMs (nexus rm NAME), or use another network (nexus network create)",
    )


def with_prefix(address: IPv4Address, cidr: str) -> str:
    """``10.77.0.5/20``"""
    return f"{address}/{IPv4Network(cidr, strict=False).prefixlen}"


def mac_for(vm_id: str, iface: str) -> str:
    """A locally administered unicast MAC, the same each time for one NIC of one VM."""
    digest = hashlib.sha256(f"{vm_id}/{iface}".encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))
