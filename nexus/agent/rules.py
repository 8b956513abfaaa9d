"""nftables rules of one host, as text: a pure function of its networks, VMs and forwards.

Two tables of our own, both replaced as wholes in one transaction: ``bridge`` looks at what comes
out of a TAP, ``inet`` at what is routed.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nexus.api.networks import HostForward, NetworkKind

MARK = 0x6E787573
"""On packets that a VM sends in a bridge which is not ours."""
_CHADDR = "@th,288,48"
"""The client's hardware address in a DHCP message: 28 bytes behind a UDP header (RFC 2131)."""
_SERVED = "meta l4proto { tcp, udp } th dport { 53, 67 }"
"""What the host itself answers at its address in a network with DHCP and DNS."""
_LINK_LOCAL = "169.254.0.0/16"
"""Where clouds tell a host its secrets (169.254.169.254), and some of them answer DNS."""


@dataclass(frozen=True)
class Segment:
    """One bridge and what may pass it."""

    bridge: str
    kind: NetworkKind
    subnet: ipaddress.IPv4Network
    isolate_vms: bool = False
    ours: bool = True
    """We made the bridge; else it is one that the host had before."""
    dhcp: bool = False
    """The host serves DHCP and DNS at its address there."""
    allow: Sequence[str] = ()
    """What of the host is open to its guests: ``tcp/5000``, ``udp/123``, ``metadata``."""

    @property
    def address(self) -> ipaddress.IPv4Address:
        """The host's own, if it has one there."""
        return self.subnet.network_address + 1


@dataclass(frozen=True)
class Port:
    """A VM's NIC: the TAP, its bridge, and the only addresses it may use."""

    tap: str
    bridge: str
    mac: str
    ip: str


@dataclass(frozen=True)
class Rules:
    """Everything the tables are made of."""

    table: str
    segments: Sequence[Segment]
    ports: Mapping[str, Sequence[Port]] = field(default_factory=dict)
    """By VM."""
    forwards: Sequence[HostForward] = ()


def text_of(rules: Rules) -> str:
    """What ``nft -f -`` is given to replace everything.

    Adding a table before deleting it makes the deletion succeed the first time too; the whole text
    is one transaction.
    """
    return "\n".join(
        [
            f"table bridge {rules.table}",
            f"delete table bridge {rules.table}",
            f"table inet {rules.table}",
            f"delete table inet {rules.table}",
            *_bridge_table(rules),
            *_inet_table(rules),
            "",
        ]
    )


def removal_of(table: str) -> str:
    """What removes everything; it succeeds as well when there is nothing."""
    both = (f"bridge {table}", f"inet {table}")
    return "".join(f"table {each}\ndelete table {each}\n" for each in both)


def change_of(verb: Literal["add", "delete"], rules: Rules, ports: Sequence[Port]) -> str:
    """What admits or forgets these ports, and touches nothing else: the same cost for the first
    VM and for the thousandth."""
    return "\n".join(
        f"{verb} element bridge {rules.table} {name} {{ {', '.join(elements)} }}"
        for name, elements in _sets(rules, ports).items()
        if elements
    )


def _sets(rules: Rules, ports: Sequence[Port]) -> dict[str, list[str]]:
    """The elements of the bridge table's sets."""
    by_bridge = {segment.bridge: segment for segment in rules.segments}
    taps, addresses, apart, foreign, served, clients = [], [], [], [], [], []
    for port in ports:
        taps.append(f'"{port.tap}"')
        addresses.append(f'"{port.tap}" . {port.mac} . {port.ip}')
        segment = by_bridge.get(port.bridge)
        if segment is None:
            continue
        if segment.isolate_vms:
            apart.append(f'"{port.tap}"')
        if not segment.ours:
            foreign.append(f'"{port.tap}"')
        if segment.dhcp:
            served.append(f'"{port.tap}"')
            hardware = port.mac.replace(":", "")
            clients.append(f'"{port.tap}" . {port.mac} . 0x{hardware}')
    return {
        "taps": taps,
        "addresses": addresses,
        "apart": apart,
        "foreign": foreign,
        "served": served,
        "clients": clients,
    }


def _bridge_table(rules: Rules) -> list[str]:
    """A TAP speaks with its own addresses only, and only IPv4 and ARP.

    A TAP is put into its bridge after the rules know it, so there is none that they do not know.
    """
    ports = [port for of_vm in rules.ports.values() for port in of_vm]
    sets = _sets(rules, ports)
    return [
        f"table bridge {rules.table} {{",
        *_set("taps", "ifname", sets["taps"]),
        *_set("addresses", "ifname . ether_addr . ipv4_addr", sets["addresses"]),
        *_set("apart", "ifname", sets["apart"]),
        *_set("foreign", "ifname", sets["foreign"]),
        *_set("served", "ifname", sets["served"]),
        *_set("clients", f"iifname . ether saddr . {_CHADDR}", sets["clients"], typed="typeof"),
        "  chain prerouting {",
        "    type filter hook prerouting priority -300;",
        "    iifname @taps jump from_vm",
        "  }",
        "  chain from_vm {",
        "    iifname @served udp sport 67 drop",
        "    iifname @served udp dport 67 jump to_dhcp",
        "    ether type arp iifname . ether saddr . arp saddr ip != @addresses drop",
        "    ether type arp iifname . arp saddr ether . arp saddr ip != @addresses drop",
        "    ether type ip iifname . ether saddr . ip saddr != @addresses drop",
        "    ether type != { ip, arp } drop",
        # In a bridge of somebody else only this tells our guests' packets from the others'.
        f"    iifname @foreign meta mark set {MARK:#x}",
        "  }",
        # Who asks for an address has none yet, and asks for that of its own MAC only.
        "  chain to_dhcp {",
        f"    iifname . ether saddr . {_CHADDR} @clients ip saddr 0.0.0.0 accept",
        f"    iifname . ether saddr . {_CHADDR} @clients return",
        "    drop",
        "  }",
        "  chain forward {",
        "    type filter hook forward priority 0;",
        # Requests are broadcast; they are the host's and no guest's to answer.
        "    iifname @served udp dport 67 drop",
        "    iifname @apart oifname @apart drop",
        "  }",
        "}",
    ]


def _inet_table(rules: Rules) -> list[str]:
    """Guests reach what their network's kind says, and on the host itself nothing but ICMP."""
    ours = [segment for segment in rules.segments if segment.ours]
    nat = [segment for segment in ours if segment.kind == "nat"]
    lines = [f"table inet {rules.table} {{", *_forward_map(rules)]
    foreign = [segment for segment in rules.segments if not segment.ours]
    if foreign:
        lines += _from_foreign_bridges(foreign)
    if not ours:
        return [*lines, "}"]
    all_bridges = _names(segment.bridge for segment in ours)
    nat_bridges = _names(segment.bridge for segment in nat)
    lines += ["  chain postrouting {", "    type nat hook postrouting priority srcnat;"]
    lines += [
        f"    ip saddr {segment.subnet} oifname != {all_bridges} masquerade" for segment in nat
    ]
    if nat and rules.forwards:
        # A connection of the host to its own loopback address must come back to it.
        lines.append(f"    ip saddr 127.0.0.0/8 oifname {nat_bridges} masquerade")
    lines += ["  }", "  chain forward {", "    type filter hook forward priority filter;"]
    lines.append(f"    iifname {all_bridges} oifname {all_bridges} jump within")
    if nat:
        for segment in nat:
            if "metadata" not in segment.allow:
                hidden = f'iifname "{segment.bridge}" ip daddr {_LINK_LOCAL}'
                lines += [
                    f"    {hidden} meta l4proto != {{ tcp, udp }} drop",
                    f"    {hidden} th dport != 53 drop",
                ]
        lines += [
            f"    iifname {nat_bridges} accept",
            f"    oifname {nat_bridges} ct state established,related accept",
            f"    oifname {nat_bridges} ct status dnat accept",
        ]
    lines += [
        f"    iifname {all_bridges} drop",
        f"    oifname {all_bridges} drop",
        "  }",
        # Frames within one bridge come here only where br_netfilter is on.
        "  chain within {",
        *(f'    iifname "{s.bridge}" oifname "{s.bridge}" accept' for s in ours),
        "    drop",
        "  }",
        "  chain input {",
        "    type filter hook input priority filter;",
        f"    iifname {all_bridges} ct state established,related accept",
        f"    iifname {all_bridges} meta l4proto {{ icmp, icmpv6 }} accept",
    ]
    for segment in ours:
        lines += _openings(segment)
        if segment.dhcp:
            at = f"ip daddr {segment.address} meta l4proto {{ tcp, udp }} th dport 53"
            lines += [
                f'    iifname "{segment.bridge}" udp sport 68 udp dport 67 accept',
                f'    iifname "{segment.bridge}" {at} accept',
                # Whoever else has a route to the address.
                f'    iifname != {{ "{segment.bridge}", "lo" }} {at} drop',
            ]
    return [*lines, f"    iifname {all_bridges} drop", "  }", "}"]


def _openings(segment: Segment) -> list[str]:
    lines = []
    for opening in segment.allow:
        protocol, _, port = opening.partition("/")
        what = f"{protocol} dport {port}" if port else f"ip daddr {_LINK_LOCAL}"
        lines.append(f'    iifname "{segment.bridge}" {what} accept')
    return lines


def _from_foreign_bridges(segments: Sequence[Segment]) -> list[str]:
    return [
        "  chain foreign {",
        "    type filter hook input priority filter;",
        f"    meta mark != {MARK:#x} accept",
        "    ct state established,related accept",
        "    meta l4proto { icmp, icmpv6 } accept",
        *(line for segment in segments for line in _openings(segment)),
        "    drop",
        "  }",
    ]


def _forward_map(rules: Rules) -> list[str]:
    """Ports of the host lead to guests; what networks are served by is no such port."""
    if not rules.forwards:
        return []
    entries = (
        f"{each.protocol} . {each.host_port} : {each.ip} . {each.guest_port}"
        for each in rules.forwards
    )
    served = [str(segment.address) for segment in rules.segments if segment.dhcp]
    stays = [f"    ip daddr {{ {', '.join(served)} }} {_SERVED} return"] if served else []
    to_guest = "    fib daddr type local dnat ip to meta l4proto . th dport map @forwards"
    return [
        *_set("forwards", "inet_proto . inet_service : ipv4_addr . inet_service", entries, "map"),
        "  chain prerouting {",
        "    type nat hook prerouting priority dstnat;",
        *stays,
        to_guest,
        "  }",
        "  chain output {",
        "    type nat hook output priority -100;",
        *stays,
        to_guest,
        "  }",
    ]


def _set(
    name: str, kind: str, elements: Iterable[str], what: str = "set", typed: str = "type"
) -> list[str]:
    listed = ",\n      ".join(elements)
    content = [f"    elements = {{ {listed} }}"] if listed else []
    return [f"  {what} {name} {{", f"    {typed} {kind}", *content, "  }"]


def _names(names: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in names) + " }"
