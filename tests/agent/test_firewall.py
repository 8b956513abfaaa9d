"""Every rule, by packets: namespaces stand for guests, their veths for TAPs."""

import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import anyio
import pytest

from nexus.agent import nft
from nexus.agent.firewall import Firewall
from nexus.agent.rules import Port, Rules, Segment, removal_of, text_of
from nexus.api.networks import HostForward
from tests.agent.harness import until

pytestmark = pytest.mark.root

TABLE = "nexus_test"
OUTSIDE = "192.0.2.9"
HOME = Segment("nxtbr0", "nat", ipaddress.IPv4Network("10.64.0.0/24"))
ALONE = Segment("nxtbr1", "isolated", ipaddress.IPv4Network("10.64.1.0/24"))
OTHER = Segment("nxtbr2", "nat", ipaddress.IPv4Network("10.64.2.0/24"))
FOREIGN = Segment("nxtbr3", "bridged", ipaddress.IPv4Network("10.64.3.0/24"), ours=False)
SEGMENTS = (HOME, ALONE, OTHER, FOREIGN)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Peer:
    """A namespace with one interface; as a guest, what comes out of it goes through a TAP."""

    namespace: str
    port: Port

    def runs(self, *words: str) -> bool:
        command = ["ip", "netns", "exec", self.namespace, *words]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def pings(self, address: str, *more: str) -> bool:
        return self.runs("busybox", "ping", "-c1", "-W1", *more, address)

    def hears(self, address: str, port: int, protocol: str = "tcp") -> bool:
        """Whether somebody answers there."""
        return hears(address, port, protocol, inside=self.namespace)


SERVER = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
server = socket.socket(socket.AF_INET, kind)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((sys.argv[2], int(sys.argv[3])))
if kind == socket.SOCK_STREAM:
    server.listen()
print("ready", flush=True)
while True:
    if kind == socket.SOCK_STREAM:
        server.accept()[0].sendall(b"hi")
    else:
        data, peer = server.recvfrom(2000)
        print(data.hex(), flush=True)
        server.sendto(b"hi", peer)
"""
CLIENT = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
client = socket.socket(socket.AF_INET, kind)
client.settimeout(1)
client.connect((sys.argv[2], int(sys.argv[3])))
client.send(b"?")
sys.exit(client.recv(9) != b"hi")
"""


def program(source: str, protocol: str, address: str, port: int, inside: str | None) -> list[str]:
    command = [sys.executable, "-S", "-c", source, protocol, address, str(port)]
    return ["ip", "netns", "exec", inside, *command] if inside else command


def hears(address: str, port: int, protocol: str = "tcp", *, inside: str | None = None) -> bool:
    command = program(CLIENT, protocol, address, port, inside)
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def serve(
    stack: ExitStack,
    port: int,
    protocol: str = "tcp",
    *,
    address: str = "0.0.0.0",
    inside: str | None = None,
) -> IO[str]:
    """A server that answers until the test ends, and what it prints of UDP packets."""
    command = program(SERVER, protocol, address, port, inside)
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process.stdout


@dataclass(frozen=True)
class Lab:
    stack: ExitStack
    one: Peer
    two: Peer
    alone: Peer
    alone_too: Peer
    other: Peer
    foreign: Peer
    outside: Peer

    @property
    def guests(self) -> dict[str, list[Port]]:
        peers = (self.one, self.two, self.alone, self.alone_too, self.other, self.foreign)
        return {peer.namespace: [peer.port] for peer in peers}

    def rules(self, *segments: Segment, forwards: tuple[HostForward, ...] = ()) -> None:
        nft.apply(text_of(Rules(TABLE, segments or SEGMENTS, self.guests, forwards)))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with ExitStack() as stack:
        forwarding = Path("/proc/sys/net/ipv4/ip_forward")
        forwarding.write_text("1")
        for segment in SEGMENTS:
            ip("link", "add", segment.bridge, "type", "bridge")
            stack.callback(ip, "link", "del", segment.bridge)
            ip("link", "set", segment.bridge, "up")
            if segment is not ALONE:
                ip("addr", "add", f"{segment.subnet[1]}/24", "dev", segment.bridge)

        def peer(number: int, segment: Segment | None, address: str, gateway: str) -> Peer:
            name = f"nxt{os.getpid()}-{number}"
            tap, mac = f"nxtap{number}", f"02:00:00:00:00:{number:02x}"
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("link", "add", tap, "type", "veth", "peer", "name", "eth0", "netns", name)
            # Before the namespace, which gives its devices back only some time after it is gone.
            stack.callback(ip, "link", "del", tap)
            if segment is not None:
                ip("link", "set", tap, "master", segment.bridge)
            ip("link", "set", tap, "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "address", mac, "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "route", "add", "default", "via", gateway)
            return Peer(name, Port(tap, segment.bridge if segment else "", mac, address))

        def guest(number: int, segment: Segment) -> Peer:
            subnet = segment.subnet
            return peer(number, segment, str(subnet[number + 10]), str(subnet[1]))

        made = Lab(
            stack=stack,
            one=guest(1, HOME),
            two=guest(2, HOME),
            alone=guest(3, ALONE),
            alone_too=guest(4, ALONE),
            other=guest(5, OTHER),
            foreign=guest(6, FOREIGN),
            outside=peer(7, None, OUTSIDE, "192.0.2.1"),
        )
        ip("addr", "add", "192.0.2.1/24", "dev", "nxtap7")
        stack.callback(nft.apply, removal_of(TABLE))
        made.rules()
        until("the links are up", lambda: made.one.pings(str(HOME.subnet[1])))
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
