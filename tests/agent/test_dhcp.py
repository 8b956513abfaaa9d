"""DHCP and names on a network: what its server is told, and what guests get of it, by packets."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.agent import dnsmasq
from nexus.agent.bridges import bridge_name
from nexus.agent.dhcp import Book, Client, Service, ServicePaths, config_of
from nexus.agent.layout import tap_name
from nexus.agent.name_service import NameService
from nexus.agent.rules import Segment
from nexus.api.networks import HostNetworks, HostNetworkSpec, HostNetworksStatus
from nexus.ids import new_id
from tests.agent.harness import Agent, links, until
from tests.agent.packets import (
    ALONE,
    FOREIGN,
    HOME,
    OTHER,
    OUTSIDE,
    SERVER,
    Lab,
    Peer,
    ip,
    opened,
    serve,
)

LAB = Service(
    network_id=new_id(),
    name="lab",
    bridge=HOME.bridge,
    subnet=HOME.subnet,
    leads_out=True,
    home=True,
    asks=(OUTSIDE,),
)
INNER = Service(
    network_id=new_id(),
    name="inner",
    bridge=ALONE.bridge,
    subnet=ALONE.subnet,
    leads_out=False,
)
ELSEWHERE = "192.0.2.77"
RESOLVER = f"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 53))
print("ready", flush=True)
while True:
    question, peer = server.recvfrom(2000)
    end = question.index(0, 12) + 5
    answer = bytes.fromhex("c00c00010001000000050004") + socket.inet_aton("{ELSEWHERE}")
    head = question[:2] + bytes.fromhex("81800001000100000000")
    server.sendto(head + question[12:end] + answer, peer)
"""
SENDER = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("0.0.0.0", int(sys.argv[1])))
sender.sendto(bytes.fromhex(sys.argv[4]), (sys.argv[2], int(sys.argv[3])))
"""
SHOW = '#!/bin/sh\n[ "$1" = bound ] && env\nexit 0\n'

# -- what a server is told -----------------------------------------------------------------------

macs = st.integers(0, 255).map(lambda n: f"02:00:00:00:00:{n:02x}")
clients = st.builds(
    Client,
    network_id=st.sampled_from([None, LAB.network_id, INNER.network_id]),
    mac=macs,
    ip=st.integers(2, 254).map(lambda n: f"10.64.0.{n}"),
)
steps = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from(["web", "db"]),
        st.lists(clients, max_size=2).map(tuple) | st.none(),
    ),
    max_size=12,
)


@given(steps)
def test_files_are_right_after_every_step(steps: list[tuple[str, str, tuple[Client, ...] | None]]):  # type: ignore[no-untyped-def]
    """What changes is always among what a step says may have changed."""
    book, files = Book(), {}
    for vm_id, name, on in steps:
        affected = book.drop(vm_id) if on is None else book.put(vm_id, name, on)
        for each in affected:
            files[each] = book.entry(LAB, each)
        for each in book.vms():
            assert files.get(each) == book.entry(LAB, each)
        names = [entry.names.split()[2] for entry in files.values() if entry and entry.names]
        assert len(names) == len(set(names)), "a name belongs to one VM"
    assert {each for each, entry in files.items() if entry} <= set(book.vms())


def test_no_way_out_of_an_isolated_network_by_names() -> None:
    paths = ServicePaths(Path("/x"))
    assert "no-resolv" in config_of(INNER, paths)
    assert "server=" not in config_of(INNER, paths)
    assert f"server={OUTSIDE}" in config_of(LAB, paths)


# -- by packets ----------------------------------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[Lab]:
    with opened() as made:
        ip("addr", "add", f"{ALONE.subnet[1]}/24", "dev", ALONE.bridge)
        served = [
            Segment(each.bridge, each.kind, each.subnet, dhcp=each in (HOME, ALONE))
            for each in (HOME, ALONE, OTHER)
        ]
        made.rules(*served, FOREIGN)
        yield made


def run(folder: Path, walk: Callable[[NameService], Awaitable[None]]) -> None:
    """Walks with a name service that has ended when this returns."""

    async def walked() -> None:
        async with anyio.create_task_group() as tasks:
            names = NameService(folder)
            names.open(tasks)
            try:
                await walk(names)
            finally:
                with anyio.CancelScope(shield=True):
                    await names.serve([])
            tasks.cancel_scope.cancel()

    anyio.run(walked)


def lease(peer: Peer, script: Path, *more: str) -> dict[str, str]:
    """What a DHCP client in the guest is given; nothing when nobody answers."""
    ip("-n", peer.namespace, "addr", "flush", "dev", "eth0")
    words = ["ip", "netns", "exec", peer.namespace, "busybox", "udhcpc", "-i", "eth0"]
    words += ["-n", "-q", "-f", "-t", "1", "-T", "1", "-s", str(script), *more]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def start(stack: ExitStack, source: str, *arguments: str, inside: str) -> subprocess.Popen[str]:
    """A program in a guest that has said it is ready."""
    command = ["ip", "netns", "exec", inside, sys.executable, "-S", "-c", source, *arguments]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def resolves(name: str, server: str, *, inside: str | None = None) -> str | None:
    """The address that a name server says a name has."""
    command = ["ip", "netns", "exec", inside] if inside else []
    command += ["timeout", "1", "busybox", "nslookup", "-type=a", name, server]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # The first is the server's own.
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("Address:")]
    return found[1] if len(found) > 1 else None


@pytest.mark.root
def test_guests_get_their_own_address_and_each_others_names(lab: Lab, tmp_path: Path) -> None:
    script = tmp_path / "show"
    script.write_text(SHOW)
    script.chmod(0o755)
    server, inner = str(LAB.address), str(INNER.address)
    start(lab.stack, RESOLVER, inside=lab.outside.namespace)
    overheard = start(lab.stack, SERVER, "udp", "0.0.0.0", "67", inside=lab.two.namespace)

    def asked() -> None:
        given = until("an address", lambda: lease(lab.one, script))
        assert (given["ip"], given["mask"]) == (lab.one.port.ip, "24")
        assert (given["router"], given["dns"]) == (server, server)
        assert (given["domain"], given["hostname"]) == ("lab.nexus", "one")
        alone = until("an address", lambda: lease(lab.alone, script))
        assert (alone["ip"], alone["dns"]) == (lab.alone.port.ip, inner)
        assert "router" not in alone
        # Whoever is not in the book gets nothing, nor does a guest that asks for another's.
        assert lease(lab.two, script) == {}
        mac = lab.one.port.mac.replace(":", "")
        assert lease(lab.alone_too, script, "-x", f"0x3d:01{mac}") == {}
        for peer in (lab.one, lab.alone):
            ip("-n", peer.namespace, "addr", "add", f"{peer.port.ip}/24", "dev", "eth0")
        one = lab.one.namespace
        until("a name", lambda: resolves("one.lab.nexus", server, inside=one) == lab.one.port.ip)
        assert resolves("one", server, inside=one) == lab.one.port.ip
        assert resolves("in.inner.nexus", server, inside=one) is None
        until("a name", lambda: resolves("in", inner, inside=lab.alone.namespace) is not None)
        # Other names are asked for outside, if the network leads there.
        until("forwarded", lambda: resolves("example.org", server, inside=one) == ELSEWHERE)
        assert resolves("example.org", inner, inside=lab.alone.namespace) is None
        # Only on one's own network, and nobody from outside.
        assert resolves("one.lab.nexus", server, inside=lab.other.namespace) is None
        assert resolves("one.lab.nexus", server, inside=lab.outside.namespace) is None
        assert resolves("one.lab.nexus", server) == lab.one.port.ip

    def renamed() -> None:
        one = lab.one.namespace
        until("the new name", lambda: resolves("uno", server, inside=one) == lab.one.port.ip)
        assert resolves("one.lab.nexus", server, inside=one) is None

    async def walk(names: NameService) -> None:
        assert await names.serve([LAB, INNER]) == {}
        client = Client(None, lab.one.port.mac, lab.one.port.ip)
        names.admit("one", "one", [client])
        inside = Client(INNER.network_id, lab.alone.port.mac, lab.alone.port.ip)
        names.admit("in", "in", [inside])
        await anyio.to_thread.run_sync(asked)
        names.rename("one", "uno", [client])
        await anyio.to_thread.run_sync(renamed)

    run(tmp_path / "dhcp", walk)
    # What guests ask is for the host alone.
    overheard.kill()
    assert overheard.communicate()[0] == ""


@pytest.mark.root
def test_a_guest_is_no_dhcp_server(lab: Lab) -> None:
    heard = serve(lab.stack, 68, "udp", inside=lab.one.namespace)
    for port in (67, 6767):
        send(lab.two, port, lab.one.port.ip, 68, f"{port:04x}")
    assert heard.readline() == f"{6767:04x}\n"


@pytest.mark.root
def test_a_guest_asks_for_itself_alone(lab: Lab) -> None:
    """A request with the hardware address of another guest does not come to the host."""
    heard = serve(lab.stack, 67, "udp")
    for peer in (lab.one, lab.two):
        message = bytes(28).hex() + peer.port.mac.replace(":", "") + bytes(202).hex()
        send(lab.two, 68, str(HOME.subnet[1]), 67, message)
    assert lab.two.port.mac.replace(":", "") in heard.readline()


def send(peer: Peer, source: int, address: str, port: int, message: str) -> None:
    """One UDP packet, given in hexadecimal digits."""
    words = ["ip", "netns", "exec", peer.namespace, sys.executable, "-S", "-c", SENDER]
    subprocess.run([*words, str(source), address, str(port), message], check=True)


# -- with an agent -------------------------------------------------------------------------------


def spec(**change: Any) -> HostNetworkSpec:
    fields: dict[str, Any] = {
        "id": new_id(),
        "name": "lab",
        "kind": "isolated",
        "cidr": "10.201.7.0/24",
        "gateway": None,
        "uplink": None,
        "isolate_vms": False,
        "dns": None,
        "dhcp": True,
    }
    return HostNetworkSpec(**{**fields, **change})


def tell(agent: Agent, *networks: HostNetworkSpec) -> HostNetworksStatus:
    wanted = HostNetworks(networks=list(networks), forwards=[])
    answer = agent.http.put(
        "/agent/v1/networks",
        content=wanted.model_dump_json(),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 200, answer.text
    return HostNetworksStatus.model_validate_json(answer.content)


def servers(agent: Agent) -> list[int]:
    """The pids of this agent's name servers."""
    found = dnsmasq.running(agent.run_dir / "dhcp")
    held = [process for of_one in found.values() for process, _ in of_one]
    for process in held:
        os.close(process.pidfd)
    return [process.pid for process in held]


@pytest.mark.root
@pytest.mark.firecracker
def test_a_server_outlives_its_agent_and_is_kept_alive(agent: Agent, tiny_kernel: Path) -> None:
    lab = spec()
    server = "10.201.7.1"
    assert [each.error for each in tell(agent, lab).networks] == [None]
    machine = agent.machine(tiny_kernel, name="web")
    nic = machine.nics[0].model_copy(update={"network": lab.id, "ip": "10.201.7.9/24"})
    machine = machine.model_copy(update={"nics": [nic]})
    agent.put(machine)
    until("its name", lambda: resolves("web.lab.nexus", server) == "10.201.7.9")
    (pid,) = servers(agent)
    status = Path(f"/proc/{pid}/status").read_text()
    assert not re.search(r"^Uid:\s0", status, re.MULTILINE), "it does not run as root"

    # The agent dies: the server goes on, and the next agent takes it up as it is.
    agent.kill()
    assert resolves("web.lab.nexus", server) == "10.201.7.9"
    agent.start()
    assert [each.error for each in tell(agent, lab).networks] == [None]
    assert servers(agent) == [pid]
    renamed = machine.model_copy(update={"name": "www", "generation": 2})
    agent.put(renamed)
    until("the new name", lambda: resolves("www.lab.nexus", server) == "10.201.7.9")
    assert resolves("web.lab.nexus", server) is None

    # The server dies: another one knows the same.
    os.kill(pid, signal.SIGKILL)
    until("another server", lambda: servers(agent) not in ([], [pid]))
    until("its name", lambda: resolves("www.lab.nexus", server) == "10.201.7.9")

    # A bridge that is made anew has a server of its own, and the VM in it as before.
    (before,) = servers(agent)
    subprocess.run(["ip", "link", "del", bridge_name(lab.id)], check=True)
    tell(agent, lab)
    assert servers(agent) not in ([], [before])
    until("its name", lambda: resolves("www.lab.nexus", server) == "10.201.7.9")
    show = ["ip", "-j", "link", "show", "master", bridge_name(lab.id)]
    ports = json.loads(subprocess.run(show, capture_output=True, check=True).stdout)
    assert [port["ifname"] for port in ports] == [tap_name(machine.id, 0)]

    # Options that are in its configuration make a new one; the VM goes and so does its name.
    (before,) = servers(agent)
    tell(agent, lab.model_copy(update={"dns": ["192.0.2.1"]}))
    assert servers(agent) not in ([], [before])
    agent.delete(machine.id)
    until("no name", lambda: resolves("www.lab.nexus", server) is None)
    tell(agent, lab.model_copy(update={"dhcp": False}))
    assert servers(agent) == []
    assert list((agent.run_dir / "dhcp").iterdir()) == []
    shown = subprocess.run(["ip", "-br", "addr"], capture_output=True, text=True, check=True)
    assert server not in shown.stdout
    tell(agent, lab)
    assert len(servers(agent)) == 1
    agent.teardown()
    assert servers(agent) == []
    assert bridge_name(lab.id) not in links()


@pytest.mark.root
@pytest.mark.firecracker
def test_a_server_that_cannot_start_says_why(agent: Agent) -> None:
    """Its network is there all the same: VMs get their addresses without it too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 53))
        (status,) = tell(agent, spec()).networks
        assert status.error is not None
        assert "dnsmasq does not start" in status.error.message
        assert "10.201.7.1: Address already in use" in status.error.message
        assert "ss -lnup" in (status.error.suggestion or "")
        assert status.bridge in links()
        assert servers(agent) == []
    # The cause goes, and it starts by itself.
    until("it serves", lambda: servers(agent) != [])


def test_a_program_that_is_missing_is_named() -> None:
    said = "setpriv: failed to execute dnsmasq: No such file or directory"
    error = dnsmasq.refusal(said)
    assert error.message == "the program dnsmasq is missing"
    assert error.suggestion == "apt-get install dnsmasq-base"
