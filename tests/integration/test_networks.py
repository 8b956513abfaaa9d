"""Linux guests on networks: what reaches what, and what a port of the host leads to."""

import os
import signal

import httpx
import pytest

from nexus.api.devices import NicCreate
from nexus.api.networks import NetworkChange, NetworkCreate, PortForwardCreate
from nexus.api.vms import VmCreate
from nexus.client import Client, ConflictError, NexusApiError
from tests.integration.installation import Installation, machine_state, service_pid, wait_for

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


def test_guests_on_networks(qemu_installation: Installation) -> None:
    before = machine_state(qemu_installation.data)
    with client_of(qemu_installation) as client:
        lab = client.networks.create(NetworkCreate(name="lab", kind="isolated", dhcp=True))
        assert (lab.state, lab.error) == ("ready", None)
        for name, nics in (
            ("net-a", [NicCreate(), NicCreate(network="lab")]),
            ("net-b", [NicCreate(network="lab")]),
        ):
            spec = VmCreate(name=name, rootfs="busybox", mem_mib=128, nics=nics)
            assert client.vms.create(spec, wait="running").state == "running"
        for name in ("net-a", "net-b"):
            wait_for(f"{name} is up", lambda n=name: is_up(client, n))
        outer, inner = (nic.ip.partition("/")[0] for nic in client.vms.get("net-a").nics)
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
        change = [
            "sh",
            "-c",
            f"ip addr add {stolen}/22 dev eth0 && ping -c1 -W2 -I {stolen} {inner}",
        ]
        assert client.vms.exec("net-b", change).exit_code != 0
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

        with pytest.raises(ConflictError, match="net-a"):
            client.networks.delete("lab")
        for name in ("net-a", "net-b"):
            client.vms.delete(name)
        client.networks.delete("lab")
    wait_for("nothing is left", lambda: machine_state(qemu_installation.data) == before)


def _text_of(url: str) -> str | None:
    try:
        return httpx.get(url, timeout=2, trust_env=False).text
    except httpx.TransportError:
        return None


def test_a_restarted_agent_keeps_networks_as_they_are(qemu_installation: Installation) -> None:
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
