"""The bridges of a host's networks: finding out whether one can be, making it, removing it."""

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from nexus.agent.errors import NetworkFailed
from nexus.agent.installation import Installation
from nexus.agent.links import Link, Links, looks_like_our_tap
from nexus.agent.rules import Segment
from nexus.api.networks import HostNetworkSpec

_MARK = "nexus-net"


def bridge_name(network_id: str) -> str:
    """The bridge of a network: 13 characters (an interface name holds 15)."""
    return "nb" + hashlib.sha256(network_id.encode()).hexdigest()[:11]


def mark(installation: Installation, network_id: str) -> str:
    """The alias by which a bridge is known as ours."""
    return f"{_MARK}:{installation.id}:{network_id}"


def is_ours(installation: Installation, link: Link) -> bool:
    """Whether a bridge is that of a network of this installation."""
    return link.kind == "bridge" and (link.alias or "").startswith(f"{_MARK}:{installation.id}:")


@dataclass(frozen=True)
class Survey:
    """How a network would be on this host, as far as one can say before anything is touched."""

    spec: HostNetworkSpec
    segment: Segment
    uplink: Link | None = None
    """The interface that becomes a port of our bridge."""

    @property
    def way_out(self) -> str:
        """The device that can be one network's only."""
        return self.uplink.name if self.uplink else self.segment.bridge


def survey(spec: HostNetworkSpec, installation: Installation, links: Links) -> Survey:
    """Looks whether the host can have the network. Raises NetworkFailed with a cure."""
    name = bridge_name(spec.id)
    subnet = ipaddress.IPv4Network(spec.cidr)
    bridge = links.find(name)
    if bridge is not None and not _may_be(bridge, installation, spec.id):
        raise NetworkFailed(
            f"the host has a device named {name} that is not ours",
            suggestion=f"look at it (ip -d link show {name}) and remove it, then try again",
        )
    if spec.kind == "bridged":
        return _survey_uplink(spec, subnet, installation, links)
    own = [bridge.index] if bridge is not None else []
    for other in links.networks_in_use(but=own):
        if other.overlaps(subnet):
            raise NetworkFailed(
                f"{subnet} overlaps with {other}, which this host already has a route to",
                suggestion="choose another subnet, or leave --cidr away",
            )
    return Survey(
        spec,
        _segment(spec, name, subnet),
    )


def standing(spec: HostNetworkSpec, installation: Installation, links: Links) -> Segment | None:
    """The bridge of ours that a network has though, by its survey, it cannot be (any more): what is
    plugged in there needs its rules all the same. None when there is none."""
    bridge = links.find(bridge_name(spec.id))
    if bridge is None or not _may_be(bridge, installation, spec.id):
        return None
    return _segment(spec, bridge.name, ipaddress.IPv4Network(spec.cidr))


def _may_be(link: Link, installation: Installation, network_id: str) -> bool:
    """Our bridge; without a mark it is one whose making was cut off."""
    return link.kind == "bridge" and link.alias in (None, mark(installation, network_id))


def _survey_uplink(
    spec: HostNetworkSpec,
    subnet: ipaddress.IPv4Network,
    installation: Installation,
    links: Links,
) -> Survey:
    uplink = links.find(spec.uplink or "")
    if uplink is None:
        raise NetworkFailed(
            f"the host has no interface {spec.uplink}", suggestion="choose one of: ip -br link"
        )
    if installation.owns(uplink) or is_ours(installation, uplink):
        raise NetworkFailed(
            f"{uplink.name} is the bridge of another network of Nexus",
            suggestion="name an interface that leads out of the host (ip -br link)",
        )
    if uplink.kind == "bridge":
        return Survey(spec, _segment(spec, uplink.name, subnet, ours=False))
    ours = links.find(bridge_name(spec.id))
    if uplink.master not in (None, 0, ours.index if ours else None):
        raise NetworkFailed(
            f"{uplink.name} is a port of another bridge",
            suggestion="name that bridge as the uplink (ip -br link)",
        )
    addresses = links.addresses(uplink.index)
    if addresses:
        raise NetworkFailed(
            f"{uplink.name} has the address {addresses[0]}: as a port of a bridge it would cut "
            "the host off",
            suggestion="make a bridge that has this address and this port, and name the bridge "
            "as the uplink",
        )
    return Survey(spec, _segment(spec, bridge_name(spec.id), subnet), uplink)


def _segment(
    spec: HostNetworkSpec, bridge: str, subnet: ipaddress.IPv4Network, *, ours: bool = True
) -> Segment:
    return Segment(
        bridge,
        spec.kind,
        subnet,
        isolate_vms=spec.isolate_vms,
        ours=ours,
        dhcp=spec.dhcp,
        allow=tuple(spec.allow),
    )


def ensure(found: Survey, installation: Installation, links: Links) -> None:
    """Makes the bridge as surveyed, or what is missing of it. Raises NetworkFailed; then a bridge
    that this call made is gone again."""
    spec, segment = found.spec, found.segment
    if not segment.ours:
        return
    made = False
    bridge = links.find(segment.bridge)
    if bridge is None:
        links.create_bridge(segment.bridge)
        made = True
        bridge = links.find(segment.bridge)
    if bridge is None:
        raise NetworkFailed(
            f"the bridge {segment.bridge} vanished while it was set up", suggestion="try again"
        )
    try:
        links.set(bridge.index, ifalias=mark(installation, spec.id))
        _address(bridge, spec, segment, links)
        if found.uplink is not None and found.uplink.master != bridge.index:
            links.set(found.uplink.index, master=bridge.index, state="up")
        links.set(bridge.index, state="up")
    except NetworkFailed:
        if made:
            links.delete(segment.bridge)
        raise


def _address(bridge: Link, spec: HostNetworkSpec, segment: Segment, links: Links) -> None:
    """The host's own address there: the gateway of a NAT network, and where DHCP is served."""
    wanted = None
    if spec.kind == "nat" or segment.dhcp:
        wanted = ipaddress.IPv4Interface(
            (segment.subnet.network_address + 1, segment.subnet.prefixlen)
        )
    for address in links.addresses(bridge.index):
        if address != wanted:
            links.remove_address(bridge.index, address)
    if wanted is not None:
        links.ensure_address(bridge.index, wanted)


def remove_others(
    wanted: set[str], everything: Sequence[Link], installation: Installation, links: Links
) -> list[str]:
    """Deletes, of all devices, our networks' bridges that are not wanted and that no TAP is in;
    returns them."""
    busy = {link.master for link in everything if looks_like_our_tap(link)}
    gone = [
        link.name
        for link in everything
        if is_ours(installation, link) and link.name not in wanted and link.index not in busy
    ]
    for name in gone:
        links.delete(name)
    return gone
