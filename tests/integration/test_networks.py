"""Linux guests on networks: what reaches what, and what a port of the host leads to."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from nexus.api.devices import NicCreate
from nexus.api.networks import NetworkChange, NetworkCreate, PortForwardCreate
from nexus.api.vms import VmCreate
from nexus.client import Client, ConflictError, NexusApiError
from tests.agent.test_dhcp import resolves
from tests.integration.installation import (
    Installation,
    machine_state,
    service_pid,
    wait_for,
    wait_until_as,
)

pytestmark = [pytest.mark.root, pytest.mark.qemu]

HTTP_PORT = 8088


def client_of(installation: Installation) -> Client:
    with installation.http() as http:
        token = http.headers["authorization"].removeprefix("Bearer ")
        return Client(str(http.base_url), token)


def pings(client: Client, name: str, address: str) -> bool:
    command = ["ping", "-c1", "-W2", address]
    return client.vms.exec(name, command).exit_code == 0


def is_up(client: Client, name: str) -> bool:
    try:
        return client.vms.guest(name).ready
    except NexusApiError as error:
        if error.code != "guest_agent_missing":
            raise
        return False


@dataclass(frozen=True)
class Lan:
    """A network behind an interface of the host, with one machine on it."""

    uplink: str
    namespace: str
    address: str

    def pings(self, address: str) -> bool:
        words = ["ip", "netns", "exec", self.namespace, "busybox", "ping", "-c1", "-W2", address]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture
def lan() -> Iterator[Lan]:
    # Named as TAPs of ours are: it is none.
    made = Lan("nxlan0", f"nxlan{os.getpid()}", "192.0.2.1")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    ip("netns", "add", made.namespace)
    try:
        ip("link", "add", made.uplink, "type", "veth", "peer", "eth0", "netns", made.namespace)
        ip("-n", made.namespace, "addr", "add", f"{made.address}/24", "dev", "eth0")
        ip("-n", made.namespace, "link", "set", "eth0", "up")
        yield made
        shown = subprocess.check_output(["ip", "link", "show", made.uplink], text=True)
        assert "master" not in shown, "the uplink is given back"
        ip("link", "del", made.uplink)
    finally:
        ip("netns", "del", made.namespace)


def test_guests_on_networks(qemu_installation: Installation, lan: Lan) -> None:
    before = machine_state(qemu_installation.data)
    with client_of(qemu_installation) as client:
        lab = client.networks.create(NetworkCreate(name="lab", kind="isolated", dhcp=True))
        assert (lab.state, lab.error) == ("ready", None)
        wan = NetworkCreate(
            name="wan", kind="bridged", uplink=lan.uplink, cidr="192.0.2.0/24", gateway=lan.address
        )
        assert client.networks.create(wan).state == "ready"
        outside = NicCreate(network="wan", ip="192.0.2.50")
        for name, nics in (
            ("net-a", [NicCreate(), NicCreate(network="lab"), outside]),
            ("net-b", [NicCreate(network="lab")]),
        ):
            spec = VmCreate(name=name, rootfs="busybox", mem_mib=128, nics=nics)
            assert client.vms.create(spec, wait="running").state == "running"
        for name in ("net-a", "net-b"):
            wait_for(f"{name} is up", lambda n=name: is_up(client, n))
        outer, inner, wide = (nic.ip.partition("/")[0] for nic in client.vms.get("net-a").nics)
        other = client.vms.get("net-b").nics[0].ip.partition("/")[0]
        members = {(member.vm_name, member.ip) for member in client.networks.members("lab")}
        assert members == {("net-a", inner), ("net-b", other)}

        # Within the network, but not from one to another.
        wait_for("the guests see each other", lambda: pings(client, "net-a", other))
        assert pings(client, "net-b", inner)
        assert not pings(client, "net-b", outer)
        # A lease is the address that the guest has anyway, and names lead to it.
        dhcp = client.vms.exec(
            "net-b", ["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", "/bin/true"]
        )
        assert f"lease of {other} obtained" in dhcp.stdout + dhcp.stderr
        asked = client.vms.exec("net-b", ["nslookup", "-type=a", "net-a.lab.nexus"])
        assert inner in asked.stdout
        # Only with one's own address.
        stolen = other.rpartition(".")[0] + ".77"
        assert client.vms.exec("net-b", _as(stolen, "eth0", inner)).exit_code != 0
        # On the network behind the uplink, both ways, and there with its own address as well.
        wait_for("the machine outside", lambda: pings(client, "net-a", lan.address))
        assert lan.pings(wide)
        assert client.vms.exec("net-a", _as("192.0.2.51", "eth2", lan.address)).exit_code != 0
        assert not lan.pings("192.0.2.51")
        # Nothing stands in the way; then something does.
        for name in ("net-a", "net-b"):
            well = client.networks.doctor(name)
            assert {check.outcome for check in well.checks} == {"ok"}, well
        tap = client.vms.get("net-b").nics[0].tap
        subprocess.run(["ip", "link", "set", tap, "down"], check=True)
        said = qemu_installation.cli("network", "doctor", "net-b", code=1)
        assert ["BAD", "tap", "eth0", tap, "is", "down"] in [x.split() for x in said.splitlines()]
        assert f"  ip link set {tap} up" in said
        subprocess.run(["ip", "link", "set", tap, "up"], check=True)
        # Apart, and together again.
        client.networks.change("lab", NetworkChange(isolate_vms=True))
        assert not pings(client, "net-a", other)
        client.networks.change("lab", NetworkChange(isolate_vms=False))
        assert pings(client, "net-a", other)

        # The guest's httpd, through a port of the host; gone with the forward.
        forward = client.forwards.create(
            "net-a", PortForwardCreate(host_port=HTTP_PORT, guest_port=80)
        )
        url = f"http://127.0.0.1:{HTTP_PORT}/index.txt"
        wait_for("the port leads to the guest", lambda: _text_of(url) == "net-a\n")
        client.forwards.delete("net-a", forward.id)
        wait_for("the port is closed", lambda: _text_of(url) is None)

        # The host's own network can have names too.
        home = client.networks.change("default", NetworkChange(dhcp=True))
        assert home.state == "ready"
        assert home.gateway is not None
        assert resolves("net-a.default.nexus", home.gateway) == outer
        client.networks.change("default", NetworkChange(dhcp=False))

        with pytest.raises(ConflictError, match="net-a"):
            client.networks.delete("lab")
        for name in ("net-a", "net-b"):
            client.vms.delete(name)
        client.networks.delete("lab")
        client.networks.delete("wan")
    wait_until_as(before, qemu_installation.data)


def _as(address: str, iface: str, other: str) -> list[str]:
    """Has a guest take another address, and speak with it."""
    command = f"ip addr add {address}/22 dev {iface} && ping -c1 -W2 -I {address} {other}"
    return ["sh", "-c", command]


def _text_of(url: str) -> str | None:
    try:
        return httpx.get(url, timeout=2, trust_env=False).text
    except httpx.TransportError:
        return None


def test_a_restarted_agent_keeps_networks_as_they_are(qemu_installation: Installation) -> None:
    before = machine_state(qemu_installation.data)
    with client_of(qemu_installation) as client:
        client.networks.create(NetworkCreate(name="kept"))
        spec = VmCreate(
            name="stays", rootfs="busybox", mem_mib=128, nics=[NicCreate(network="kept")]
        )
        vm = client.vms.create(spec, wait="running")
        address = vm.nics[0].ip.partition("/")[0]
        url = f"http://{address}/index.txt"
        wait_for("the guest answers", lambda: _text_of(url) == "stays\n")
        old = wait_for("the agent", lambda: service_pid(qemu_installation, "nexus.agent"))
        os.kill(old, signal.SIGKILL)
        wait_for(
            "a new agent",
            lambda: service_pid(qemu_installation, "nexus.agent") not in (None, old),
        )
        wait_for("ready", client.ready)
        assert _text_of(url) == "stays\n"
        assert client.vms.get("stays").pid == vm.pid
        client.vms.delete("stays")
        client.networks.delete("kept")
    # The next test takes what it finds for what it has to leave.
    wait_until_as(before, qemu_installation.data)
