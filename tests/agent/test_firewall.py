"""Every rule, by packets."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import anyio
import pytest

from nexus.agent import nft
from nexus.agent.firewall import Firewall
from nexus.agent.rules import Rules, Segment, text_of
from nexus.api.networks import HostForward, Protocol
from tests.agent.harness import until
from tests.agent.packets import (
    ALONE,
    FOREIGN,
    HOME,
    OTHER,
    OUTSIDE,
    SEGMENTS,
    TABLE,
    Lab,
    hears,
    ip,
    opened,
    serve,
)

pytestmark = pytest.mark.root


@pytest.fixture
def lab() -> Iterator[Lab]:
    with opened() as made:
        yield made


def test_a_nat_network_reaches_its_own_and_the_outside(lab: Lab) -> None:
    until("guests of one network", lambda: lab.one.pings(lab.two.port.ip))
    until("the outside", lambda: lab.one.pings(OUTSIDE))
    # Masqueraded: the outside has a route to the host only.
    serve(lab.stack, 7000, inside=lab.outside.namespace)
    assert lab.one.hears(OUTSIDE, 7000)
    assert not lab.outside.pings(lab.one.port.ip)


def test_networks_do_not_reach_each_other(lab: Lab) -> None:
    assert lab.other.pings(OUTSIDE)
    assert not lab.one.pings(lab.other.port.ip)
    assert not lab.other.pings(lab.one.port.ip)


def test_an_isolated_network_reaches_only_itself(lab: Lab) -> None:
    until("guests of one network", lambda: lab.alone.pings(lab.alone_too.port.ip))
    ip("addr", "add", f"{ALONE.subnet[1]}/24", "dev", ALONE.bridge)
    until("the host has the address", lambda: lab.alone.pings(str(ALONE.subnet[1])))
    assert not lab.alone.pings(OUTSIDE)
    assert not lab.alone.pings(lab.one.port.ip)


def test_guests_reach_no_port_of_the_host(lab: Lab) -> None:
    serve(lab.stack, 7001)
    assert lab.outside.hears("192.0.2.1", 7001)
    for guest, address in (
        (lab.one, str(HOME.subnet[1])),
        (lab.one, "192.0.2.1"),
        (lab.foreign, str(FOREIGN.subnet[1])),
    ):
        assert guest.pings(address)
        assert not guest.hears(address, 7001)


def test_what_the_host_opens_itself_is_answered(lab: Lab) -> None:
    for guest in (lab.one, lab.foreign):
        serve(lab.stack, 7002, inside=guest.namespace)
        assert hears(guest.port.ip, 7002)


def test_others_in_a_bridge_that_is_not_ours_are_left_alone(lab: Lab) -> None:
    serve(lab.stack, 7003)
    guests = {name: ports for name, ports in lab.guests.items() if name != lab.foreign.namespace}
    nft.apply(text_of(Rules(TABLE, SEGMENTS, guests)))
    assert lab.foreign.hears(str(FOREIGN.subnet[1]), 7003)


def test_vms_of_a_network_can_be_kept_apart(lab: Lab) -> None:
    assert lab.one.pings(lab.two.port.ip)
    apart = Segment(HOME.bridge, HOME.kind, HOME.subnet, isolate_vms=True)
    lab.rules(apart, ALONE, OTHER, FOREIGN)
    assert not lab.one.pings(lab.two.port.ip)
    assert lab.one.pings(OUTSIDE)
    assert lab.alone.pings(lab.alone_too.port.ip)


@pytest.mark.parametrize("change", ["address", "mac", "both"])
def test_a_guest_can_use_only_its_own_addresses(lab: Lab, change: str) -> None:
    assert lab.one.pings(lab.two.port.ip)
    if change in ("address", "both"):
        ip("-n", lab.one.namespace, "addr", "flush", "dev", "eth0")
        ip("-n", lab.one.namespace, "addr", "add", "10.64.0.99/24", "dev", "eth0")
    if change in ("mac", "both"):
        ip("-n", lab.one.namespace, "link", "set", "eth0", "address", "02:00:00:00:00:99")
    ip("-n", lab.two.namespace, "neigh", "flush", "dev", "eth0")
    assert not lab.one.pings(lab.two.port.ip)
    assert not lab.one.pings(str(HOME.subnet[1]))


def test_a_guest_cannot_take_anothers_address(lab: Lab) -> None:
    """Neither by an ARP answer nor with the other's MAC."""
    ip("-n", lab.one.namespace, "addr", "add", f"{lab.two.port.ip}/32", "dev", "lo")
    ip("-n", lab.one.namespace, "neigh", "flush", "dev", "eth0")
    subprocess.run(["ip", "neigh", "flush", "dev", HOME.bridge], check=True)
    until("the host finds it", lambda: ping_from_host(lab.two.port.ip))
    neighbours = subprocess.run(
        ["ip", "neigh", "show", lab.two.port.ip], capture_output=True, text=True, check=True
    )
    assert lab.two.port.mac in neighbours.stdout


def ping_from_host(address: str) -> bool:
    done = subprocess.run(["busybox", "ping", "-c1", "-W1", address], capture_output=True)
    return done.returncode == 0


def test_only_ipv4_and_arp_leave_a_guest(lab: Lab) -> None:
    for number, guest in ((1, lab.one), (2, lab.two)):
        ip("-n", guest.namespace, "addr", "add", f"fd00::{number}/64", "dev", "eth0", "nodad")
    assert not lab.one.runs("busybox", "ping", "-6", "-c1", "-W1", "fd00::2")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_forwarded_port_leads_to_its_guest(lab: Lab, protocol: str) -> None:
    serve(lab.stack, 80, protocol, inside=lab.two.namespace)
    assert not lab.outside.hears("192.0.2.1", 8080, protocol)
    lab.rules(
        forwards=(
            HostForward(
                protocol="tcp" if protocol == "tcp" else "udp",
                host_port=8080,
                ip=lab.two.port.ip,
                guest_port=80,
            ),
        )
    )
    nft.route_loopback(HOME.bridge)
    assert lab.outside.hears("192.0.2.1", 8080, protocol)
    assert hears("192.0.2.1", 8080, protocol)
    assert hears("127.0.0.1", 8080, protocol)
    assert not lab.outside.pings(lab.two.port.ip)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_names_of_a_network_are_not_forwarded_away(lab: Lab, protocol: Protocol) -> None:
    address, forwarded = str(HOME.subnet[1]), "192.0.2.1"
    serve(lab.stack, 53, protocol, address=address)
    serve(lab.stack, 53, protocol, inside=lab.other.namespace)
    away = HostForward(protocol=protocol, host_port=53, ip=lab.other.port.ip, guest_port=53)
    lab.rules(replace(HOME, dhcp=True), ALONE, OTHER, FOREIGN, forwards=(away,))
    assert lab.one.hears(address, 53, protocol)
    assert hears(address, 53, protocol)
    assert lab.outside.hears(forwarded, 53, protocol)


def test_loopback_of_the_host_stays_closed_to_guests(lab: Lab) -> None:
    nft.route_loopback(HOME.bridge)
    serve(lab.stack, 7005, address="127.0.0.1")
    assert hears("127.0.0.1", 7005)
    ip("-n", lab.one.namespace, "route", "add", "127.0.0.1/32", "via", "10.64.0.1", "table", "9")
    ip("-n", lab.one.namespace, "rule", "add", "pref", "0", "to", "127.0.0.1", "lookup", "9")
    assert not lab.one.hears("127.0.0.1", 7005)


def test_a_vm_is_admitted_and_forgotten_by_itself(lab: Lab) -> None:
    """One VM's change touches neither the others nor what the rules say as wholes."""

    async def walk() -> None:
        firewall = Firewall(TABLE, SEGMENTS)
        await firewall.replace(SEGMENTS, [])
        async with anyio.create_task_group() as tasks:
            for name, ports in lab.guests.items():
                tasks.start_soon(firewall.admit, name, ports)
        assert listed() == whole(firewall)
        await firewall.forget(lab.one.namespace)
        assert listed() == whole(firewall)
        # Rules that somebody flushed are written anew with the next change.
        nft.apply(f"delete table bridge {TABLE}")
        await firewall.forget(lab.two.namespace)
        assert listed() == whole(firewall)

    anyio.run(walk)


def listed() -> str:
    command = ["nft", "-s", "list", "table", "bridge", TABLE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return "\n".join(sorted(done.stdout.replace(",", "\n").split()))


def whole(firewall: Firewall) -> str:
    nft.apply(text_of(firewall.rules))
    return listed()


def test_guests_do_not_reach_the_secrets_of_a_cloud(lab: Lab) -> None:
    """Neither those on the host nor those behind it; a name server among them they do."""
    metadata = "169.254.169.254"
    ip("addr", "add", "169.254.0.1/16", "dev", "nxtap7")
    ip("-n", lab.outside.namespace, "addr", "add", f"{metadata}/16", "dev", "eth0")
    for port in (80, 53):
        serve(lab.stack, port, inside=lab.outside.namespace)
    assert hears(metadata, 80)
    assert lab.one.hears(OUTSIDE, 80)
    assert lab.one.hears(metadata, 53)
    assert not lab.one.hears(metadata, 80)
    assert not lab.one.pings(metadata)
    ip("-n", lab.outside.namespace, "addr", "del", f"{metadata}/16", "dev", "eth0")
    ip("addr", "add", f"{metadata}/32", "dev", "lo")
    serve(lab.stack, 7006)
    assert hears(metadata, 7006)
    assert not lab.one.hears(metadata, 7006)
    # Unless it is allowed.
    lab.rules(replace(HOME, allow=("metadata",)), ALONE, OTHER, FOREIGN)
    assert lab.one.hears(metadata, 7006)
    assert not lab.one.hears(str(HOME.subnet[1]), 7006)
    ip("addr", "del", f"{metadata}/32", "dev", "lo")
    ip("-n", lab.outside.namespace, "addr", "add", f"{metadata}/16", "dev", "eth0")
    until("behind the host", lambda: lab.one.hears(metadata, 80))
    assert not lab.other.hears(metadata, 80)


def test_a_port_of_the_host_can_be_opened(lab: Lab) -> None:
    for port in (7007, 7008):
        serve(lab.stack, port)
    allow = ("tcp/7007", "udp/7008")
    lab.rules(replace(HOME, allow=allow), ALONE, OTHER, replace(FOREIGN, allow=allow))
    for guest, segment in ((lab.one, HOME), (lab.foreign, FOREIGN)):
        assert guest.hears(str(segment.subnet[1]), 7007)
        assert not guest.hears(str(segment.subnet[1]), 7008)
    assert not lab.other.hears(str(OTHER.subnet[1]), 7007)
