"""Who this installation is, and which network it has: decided once, kept in one file.

Several installations may live on one machine. What is in the kernel carries a mark of its owner:
the bridge's alias is ``nexus:ID``, and ``nexus:ID:forward-was-off`` when IPv4 forwarding was off
before Nexus came.
"""

import hashlib
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nexus.agent.atomic import write_atomically
from nexus.agent.errors import NetworkFailed
from nexus.agent.links import Link, Links
from nexus.ids import new_id

POOL = ipaddress.IPv4Network("10.64.0.0/10")
PREFIX_LENGTH = 20
_MARK = "nexus:"
_FORWARD_WAS_OFF = "forward-was-off"


class Installation(BaseModel):
    """The identity of one installation; its id is the host's id as well."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    bridge: str | None = None
    subnet: ipaddress.IPv4Network | None = None
    forward_was_off: bool = False

    @property
    def short_hash(self) -> str:
        return hashlib.sha256(self.id.encode()).hexdigest()[:8]

    @property
    def table(self) -> str:
        """The name of our nftables table."""
        return f"nexus_{self.short_hash}"

    @property
    def alias(self) -> str:
        """The mark on our bridge."""
        suffix = f":{_FORWARD_WAS_OFF}" if self.forward_was_off else ""
        return f"{_MARK}{self.id}{suffix}"

    @property
    def unclaimed_bridge(self) -> str:
        """The name our bridge has between being made and being named."""
        return f"nxb{self.short_hash}"

    def owns(self, link: Link) -> bool:
        marked = (link.alias or "").split(":")[:2] == ["nexus", self.id]
        return link.kind == "bridge" and (marked or link.name == self.unclaimed_bridge)


def load(file: Path) -> Installation | None:
    """The installation in that file; None when there is none yet."""
    try:
        return Installation.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise NetworkFailed(
            f"{file} is damaged: {error.errors()[0]['msg']}",
            suggestion=f"restore it, or move {file} away to begin anew",
        ) from error


def load_or_begin(file: Path) -> Installation:
    found = load(file)
    if found is None:
        found = Installation(id=new_id())
        save(file, found)
    return found


def save(file: Path, installation: Installation) -> None:
    write_atomically(file, installation.model_dump_json(indent=2).encode())


def marked_by_anyone(link: Link) -> bool:
    return link.kind == "bridge" and (link.alias or "").startswith(_MARK)


def forwarding_was_off(on_now: bool, links: Iterable[Link]) -> bool:
    """Whether forwarding was off before the first installation on this machine came."""
    marks = [link.alias or "" for link in links if marked_by_anyone(link)]
    return not on_now or any(mark.endswith(_FORWARD_WAS_OFF) for mark in marks)


def choose_subnet(
    installation_id: str, in_use: Iterable[ipaddress.IPv4Network]
) -> ipaddress.IPv4Network:
    """A /20 of 10.64.0.0/10 that touches no network of this machine; derived from the id.

    Raises NetworkFailed when every one is taken.
    """
    taken = list(in_use)
    count = 1 << (PREFIX_LENGTH - POOL.prefixlen)
    first = int.from_bytes(hashlib.sha256(installation_id.encode()).digest()[:4]) % count
    size = 1 << (32 - PREFIX_LENGTH)
    for step in range(count):
        base = int(POOL.network_address) + (first + step) % count * size
        subnet = ipaddress.IPv4Network((base, PREFIX_LENGTH))
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise NetworkFailed(
        f"every /{PREFIX_LENGTH} of {POOL} overlaps with a route of this machine",
        suggestion="set NEXUS_SUBNET to a network that is free here",
    )


def claim_bridge(installation: Installation, wanted: str, links: Links) -> str:
    """Makes our bridge, or finds it; returns its name.

    It is made under a name nobody else uses, marked, and then renamed: the kernel refuses a name
    that is taken, and a bridge without a mark is never left under a public name.
    """
    mine = [link for link in links.all() if installation.owns(link)]
    named = [link for link in mine if link.name != installation.unclaimed_bridge]
    if named:
        return named[0].name
    if not mine:
        links.create_bridge(installation.unclaimed_bridge)
    bridge = links.find(installation.unclaimed_bridge)
    if bridge is None:
        raise NetworkFailed(
            f"the bridge {installation.unclaimed_bridge} vanished while it was set up",
            suggestion="start the agent again",
        )
    links.set(bridge.index, ifalias=installation.alias)
    for name in (wanted, f"fcbr{installation.short_hash}"):
        try:
            links.set(bridge.index, ifname=name)
        except FileExistsError:
            continue
        return name
    raise NetworkFailed(
        f"the bridge names {wanted} and fcbr{installation.short_hash} are both taken",
        suggestion="set FC_BRIDGE to a name that is free (ip -br link)",
    )
