"""A lab for packets: namespaces stand for guests, their veths for TAPs."""

import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nexus.agent import nft
from nexus.agent.rules import Port, Rules, Segment, removal_of, text_of
from nexus.api.networks import HostForward
from tests.agent.harness import until

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


@contextmanager
def opened() -> Iterator[Lab]:
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
