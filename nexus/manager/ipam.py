"""Addresses for NICs: which one is next, and the MAC that belongs to a VM. Pure functions."""

import hashlib
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network

from nexus.api.errors import AddressPoolExhausted
from nexus.api.hosts import HostNetwork


def free_addresses(
    network: HostNetwork, used: Collection[int], after: int
) -> Iterator[IPv4Address]:
    """The free addresses behind ``after``, going round once; so a freed one rests for a while.

    Never the network's own address, its gateway or its broadcast. Raises AddressPoolExhausted when
    they have come to an end.
    """
    subnet = IPv4Network(network.cidr, strict=False)
    first, last = int(subnet.network_address) + 1, int(subnet.broadcast_address) - 1
    taken = {*used, int(IPv4Address(network.gateway))}
    size = last - first + 1
    begin = after + 1 - first if first <= after <= last else 0
    for step in range(max(0, size)):
        candidate = first + (begin + step) % size
        if candidate not in taken:
            yield IPv4Address(candidate)
    raise AddressPoolExhausted(
        f"every address of {network.cidr} is in use",
        suggestion="delete VMs (nexus rm NAME), or give the host a larger subnet (NEXUS_SUBNET)",
    )


def next_address(network: HostNetwork, used: Collection[int], after: int) -> IPv4Address:
    """The first of ``free_addresses``."""
    return next(free_addresses(network, used, after))


def with_prefix(address: IPv4Address, network: HostNetwork) -> str:
    """``10.77.0.5/20``"""
    return f"{address}/{IPv4Network(network.cidr, strict=False).prefixlen}"


def mac_for(vm_id: str, iface: str) -> str:
    """A locally administered unicast MAC, the same each time for one NIC of one VM."""
    digest = hashlib.sha256(f"{vm_id}/{iface}".encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))
