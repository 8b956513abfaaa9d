"""What stands between a guest and its network: facts in, findings out. Pure."""

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nexus.agent.links import Link
from nexus.agent.rules import Segment
from nexus.api.doctor import Check, CheckStep
from nexus.api.guest import GuestAddress
from nexus.api.machines import MachineNic, MachineState
from nexus.api.networks import HostForward, NetworkError

RESTART_AGENT = "restart the agent on the host: it makes anew what is missing, and VMs go on"
SHOWN = 3
"""So many differences of the rules are told."""


@dataclass(frozen=True)
class NicFacts:
    """What was seen of one NIC."""

    nic: MachineNic
    tap: str
    wanted_owner: int | None
    """The uid that must be able to open the TAP; None is root."""
    network: str | None = None
    """Its network's name; None when this host was not told of it."""
    error: NetworkError | None = None
    """Why the host does not have it, or does not serve it."""
    segment: Segment | None = None
    """None when the host does not have it."""
    uplink: str | None = None
    bridge_link: Link | None = None
    bridge_addresses: Sequence[ipaddress.IPv4Interface] = ()
    tap_link: Link | None = None
    uplink_link: Link | None = None
    admitted: bool | None = None
    """Whether the kernel lets it speak with its own addresses; None when that cannot be read."""
    server_pid: int | None = None
    leased: bool = False
    """Whether its network's server was told of it."""
    answered: str | None = None
    """The MAC that answered for its address."""
    asked: bool = False

    @property
    def ip(self) -> str:
        return str(ipaddress.IPv4Interface(self.nic.ip).ip)


@dataclass(frozen=True)
class Facts:
    """What was seen of one VM and its host."""

    name: str
    state: MachineState
    nics: Sequence[NicFacts]
    forwarding: bool
    differences: Sequence[str] | None
    """Of the rules from what they should be; None when they cannot be read."""
    unreadable: NetworkError | None = None
    """Why they cannot."""
    guest: Sequence[GuestAddress] | None = None
    """What the guest says it has; None when it says nothing."""
    guest_missing: str | None = None
    """Why it says nothing."""
    forwards: Sequence[HostForward] = ()
    held_forwards: frozenset[HostForward] | None = None
    """Those of them that the kernel has; None when that cannot be read."""


def findings(facts: Facts) -> list[Check]:
    """Every check, in the order in which a packet would need them."""
    checks = [_vm(facts)]
    alive = facts.state in ("running", "paused")
    for nic in facts.nics:
        checks += _network(nic)
        if nic.segment is None:
            continue
        checks += _bridge(nic, nic.segment)
        checks += _uplink(nic)
        if alive:
            checks += _tap(nic, facts.name)
            checks += _addresses(nic)
    checks += _rules(facts)
    if any(nic.segment and nic.segment.kind == "nat" for nic in facts.nics):
        checks.append(_forwarding(facts))
    for nic in facts.nics:
        if nic.segment is not None:
            checks += _dhcp(nic, nic.segment, alive)
    if alive:
        for nic in facts.nics:
            checks += _guest(nic, facts)
    checks += _forwards(facts)
    return checks


def _ok(step: CheckStep, message: str, iface: str | None = None) -> Check:
    return Check(step=step, iface=iface, outcome="ok", message=message)


def _bad(step: CheckStep, message: str, cure: str | None, iface: str | None = None) -> Check:
    return Check(step=step, iface=iface, outcome="bad", message=message, suggestion=cure)


def _unknown(step: CheckStep, message: str, iface: str | None = None) -> Check:
    return Check(step=step, iface=iface, outcome="unknown", message=message)


def _vm(facts: Facts) -> Check:
    if facts.state == "running":
        return _ok("vm", f"{facts.name} runs")
    if facts.state == "paused":
        return _bad("vm", f"{facts.name} is paused", f"nexus resume {facts.name}")
    return _bad(
        "vm",
        f"{facts.name} is {facts.state}: it has no devices on the host",
        f"nexus start {facts.name}, or: nexus why {facts.name}",
    )


def _network(nic: NicFacts) -> Iterator[Check]:
    iface = nic.nic.iface
    if nic.network is None and nic.segment is None:
        cure = "nexus network ls; the host is told within some seconds of what is there"
        yield _bad("network", "the host was not told of its network", cure, iface)
    elif nic.segment is None:
        because = f": {nic.error.message}" if nic.error else ""
        cure = (nic.error.suggestion if nic.error else None) or f"nexus network show {nic.network}"
        yield _bad("network", f"the host does not have {nic.network}{because}", cure, iface)
    else:
        kind, subnet = nic.segment.kind, nic.segment.subnet
        name = nic.network or "the host's own network"
        yield _ok("network", f"{name} is {kind}, {subnet}", iface)


def _bridge(nic: NicFacts, segment: Segment) -> Iterator[Check]:
    iface, link = nic.nic.iface, nic.bridge_link
    if link is None:
        yield _bad("bridge", f"the bridge {segment.bridge} is gone", RESTART_AGENT, iface)
        return
    if not link.up:
        cure = f"ip link set {segment.bridge} up"
        yield _bad("bridge", f"the bridge {segment.bridge} is down", cure, iface)
        return
    wanted = None
    if segment.ours and (segment.kind == "nat" or segment.dhcp):
        wanted = ipaddress.IPv4Interface((segment.address, segment.subnet.prefixlen))
    if wanted is not None and wanted not in nic.bridge_addresses:
        yield _bad(
            "bridge",
            f"the bridge {segment.bridge} has lost its address {wanted}",
            f"ip addr add {wanted} dev {segment.bridge}",
            iface,
        )
        return
    with_address = f", with {wanted}" if wanted else ""
    yield _ok("bridge", f"{segment.bridge} is up{with_address}", iface)


def _uplink(nic: NicFacts) -> Iterator[Check]:
    name, link, iface = nic.uplink, nic.uplink_link, nic.nic.iface
    if name is None:
        return
    if link is None:
        yield _bad("uplink", f"the host has no interface {name}", "ip -br link", iface)
    elif not link.up:
        yield _bad("uplink", f"{name} is down", f"ip link set {name} up", iface)
    elif (
        nic.bridge_link
        and link.name != nic.bridge_link.name
        and (link.master != nic.bridge_link.index)
    ):
        cure = f"ip link set {name} master {nic.bridge_link.name}"
        yield _bad("uplink", f"{name} is no port of {nic.bridge_link.name}", cure, iface)
    elif not link.carrier:
        cure = "see to the cable, or to the other end"
        yield _bad("uplink", f"nothing is at the other end of {name}", cure, iface)
    else:
        yield _ok("uplink", f"{name} is up", iface)


def _tap(nic: NicFacts, name: str) -> Iterator[Check]:
    iface, tap, link = nic.nic.iface, nic.tap, nic.tap_link
    if link is None:
        cure = f"nexus reboot {name}: it is made at each start"
        yield _bad("tap", f"the TAP {tap} is gone", cure, iface)
        return
    if link.kind != "tun":
        cure = f"ip -d link show {tap}; remove it, then: nexus reboot {name}"
        yield _bad("tap", f"{tap} is no TAP but {link.kind or 'another device'}", cure, iface)
        return
    bridge = nic.bridge_link
    if bridge is not None and link.master != bridge.index:
        cure = f"ip link set {tap} master {bridge.name}"
        yield _bad("tap", f"{tap} is not in the bridge {bridge.name}", cure, iface)
    elif not link.up:
        yield _bad("tap", f"{tap} is down", f"ip link set {tap} up", iface)
    elif nic.wanted_owner is not None and link.owner != nic.wanted_owner:
        yield _bad(
            "tap",
            f"{tap} belongs to uid {link.owner}, the VMM runs as {nic.wanted_owner}",
            f"nexus reboot {name}: it is made at each start",
            iface,
        )
    elif not link.carrier:
        cure = f"nexus why {name}; nexus reboot {name}"
        yield _bad("tap", f"the VMM has not opened {tap}", cure, iface)
    else:
        yield _ok("tap", f"{tap} is up and in its bridge", iface)


def _addresses(nic: NicFacts) -> Iterator[Check]:
    iface, own = nic.nic.iface, f"{nic.nic.mac} {nic.ip}"
    if nic.admitted is None:
        yield _unknown("addresses", "the rules cannot be read", iface)
    elif nic.admitted:
        yield _ok("addresses", f"the rules let {nic.tap} speak as {own}", iface)
    else:
        message = f"the rules do not let {nic.tap} speak as {own}: all it sends is dropped"
        yield _bad("addresses", message, RESTART_AGENT, iface)


def _rules(facts: Facts) -> Iterator[Check]:
    if facts.differences is None:
        why = facts.unreadable
        because = f": {why.message}" if why else ""
        yield _bad(
            "rules", f"the rules cannot be read{because}", why.suggestion if why else RESTART_AGENT
        )
        return
    for difference in facts.differences[:SHOWN]:
        cure = f"{RESTART_AGENT}; nft monitor tells who else changes them"
        yield _bad("rules", f"they are not as they should be: {difference}", cure)
    if not facts.differences:
        yield _ok("rules", "the kernel has them as they should be")


def _forwarding(facts: Facts) -> Check:
    if facts.forwarding:
        return _ok("forwarding", "IPv4 forwarding is on")
    cure = "sysctl -w net.ipv4.ip_forward=1, and see who switched it off"
    return _bad("forwarding", "IPv4 forwarding is off: nothing leaves the host", cure)


def _dhcp(nic: NicFacts, segment: Segment, alive: bool) -> Iterator[Check]:
    iface = nic.nic.iface
    if not segment.dhcp:
        return
    if nic.server_pid is None:
        because = f": {nic.error.message}" if nic.error else ""
        cure = (nic.error.suggestion if nic.error else None) or "journalctl -t dnsmasq"
        yield _bad("dhcp", f"dnsmasq does not run{because}", cure, iface)
    elif alive and not nic.leased:
        yield _bad("dhcp", "dnsmasq was not told of this VM", RESTART_AGENT, iface)
    else:
        has = f" and has a lease of {nic.ip} for {nic.nic.mac}" if alive else ""
        yield _ok("dhcp", f"dnsmasq runs (pid {nic.server_pid}){has}", iface)


def _guest(nic: NicFacts, facts: Facts) -> Iterator[Check]:
    iface, mac = nic.nic.iface, nic.nic.mac
    if facts.guest is None:
        why = facts.guest_missing or "its agent was not asked"
        yield _unknown("guest", f"what addresses the guest has is not known: {why}", iface)
    else:
        mine = {each.ip for each in facts.guest if each.mac.lower() == mac}
        if nic.nic.ip in mine:
            yield _ok("guest", f"the guest has {nic.nic.ip}", iface)
        else:
            has = ", ".join(sorted(mine)) or "no address"
            yield _bad(
                "guest",
                f"the guest has {has} at {mac}, and not {nic.nic.ip}",
                f"nexus exec {facts.name} -- ip addr; its address is {nic.nic.ip}",
                iface,
            )
    if not nic.asked:
        yield _unknown("arp", "nobody was asked for its address", iface)
    elif nic.answered == mac:
        yield _ok("arp", f"it answers for {nic.ip}", iface)
    elif nic.answered is None:
        cure = f"nexus console {facts.name}: is {nic.ip} up there, and is a firewall before it?"
        yield _bad("arp", f"nobody answers for {nic.ip}", cure, iface)
    else:
        cure = f"give one of both another address; ip neigh, and look for {nic.answered}"
        yield _bad("arp", f"{nic.answered} answers for {nic.ip} as well or instead", cure, iface)


def _forwards(facts: Facts) -> Iterator[Check]:
    for forward in facts.forwards:
        leads = f"{forward.protocol} port {forward.host_port} leads to {forward.ip}:"
        leads += str(forward.guest_port)
        if facts.held_forwards is None:
            yield _unknown("forward", "the rules cannot be read")
        elif forward in facts.held_forwards:
            yield _ok("forward", leads)
        else:
            yield _bad("forward", f"the kernel does not know that {leads}", RESTART_AGENT)
