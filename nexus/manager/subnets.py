"""Which subnet a new network gets: pure functions."""

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Network

from nexus.api.errors import Conflict

POOL = IPv4Network("10.128.0.0/9")
"""Not where hosts choose the subnet of their own network (10.64.0.0/10)."""
PREFIX_LENGTH = 22


def propose(network_id: str, taken: Iterable[IPv4Network]) -> IPv4Network:
    """A /22 of the pool that overlaps with nothing; derived from the id. Raises Conflict."""
    others = [net for net in taken if net.overlaps(POOL)]
    count = 1 << (PREFIX_LENGTH - POOL.prefixlen)
    first = int.from_bytes(hashlib.sha256(network_id.encode()).digest()[:4]) % count
    size = 1 << (32 - PREFIX_LENGTH)
    for step in range(count):
        base = int(POOL.network_address) + (first + step) % count * size
        subnet = IPv4Network((base, PREFIX_LENGTH))
        if not any(subnet.overlaps(other) for other in others):
            return subnet
    raise Conflict(
        f"every /{PREFIX_LENGTH} of {POOL} is taken",
        suggestion="name a subnet that is free: --cidr 192.168.50.0/24",
    )


def check_free(wanted: IPv4Network, taken: Iterable[tuple[IPv4Network, str]]) -> None:
    """Raises Conflict when the subnet overlaps with one that is taken, naming whose it is."""
    for other, whose in taken:
        if wanted.overlaps(other):
            raise Conflict(
                f"{wanted} overlaps with {other}, {whose}",
                suggestion="choose another subnet, or leave it away and get one proposed",
            )
