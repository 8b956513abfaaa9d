"""What a host's network can be refused for: each with a cure, and nothing half made."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nexus.agent.bridges import bridge_name
from nexus.agent.errors import NetworkFailed
from nexus.agent.layout import tap_name
from nexus.agent.links import Links
from nexus.api.machines import Machine
from nexus.api.networks import HostNetworkSpec, NetworkError
from tests.agent.harness import Agent, links, tables, until
from tests.agent.packets import ip
from tests.agent.test_dhcp import spec, tell

pytestmark = [pytest.mark.root, pytest.mark.firecracker]

WITHOUT_LIBRARY = ["unshare", "--mount", sys.executable, "-c"]
HIDE = """
import glob, os, subprocess, sys
for library in glob.glob("/usr/lib/*/libnftables.so.1"):
    subprocess.run(["mount", "--bind", "/dev/null", os.path.realpath(library)], check=True)
os.execv(sys.executable, [sys.executable, "-m", "nexus.agent"])
"""
CAPABILITY = "-net_admin"
WITHOUT_RIGHT = ["setpriv", f"--bounding-set={CAPABILITY}", f"--inh-caps={CAPABILITY}"]


@pytest.mark.parametrize(
    ("command", "because", "cure"),
    [
        (
            [*WITHOUT_LIBRARY, HIDE],
            "the library libnftables is missing",
            "apt-get install nftables",
        ),
        ([*WITHOUT_RIGHT, sys.executable, "-m", "nexus.agent"], "not permitted", "CAP_NET_ADMIN"),
    ],
)
def test_an_agent_that_can_have_no_rules_makes_nothing(
    firecracker_binary: Path, command: list[str], because: str, cure: str
) -> None:
    before = (links(), tables())
    with closing(Agent(FC_BINARY=str(firecracker_binary))) as agent:
        agent.start(ready=False, command=command)
        assert agent.process is not None
        assert agent.process.wait(timeout=60) == 1
        agent.process = None
        said = agent.log.read_text()
        assert because in said
        assert cure in said
        assert "Traceback" not in said
        assert (links(), tables()) == before
        assert not agent.run_dir.joinpath("installation.json").exists()


@pytest.fixture
def devices() -> Iterator[None]:
    ip("link", "add", "fwan0", "type", "veth", "peer", "name", "fwan1")
    ip("link", "add", "fother0", "type", "bridge")
    ip("link", "add", "fport0", "type", "veth", "peer", "name", "fport1")
    ip("link", "set", "fport0", "master", "fother0")
    ip("addr", "add", "198.51.100.1/24", "dev", "fwan1")
    yield
    for name in ("fwan0", "fother0", "fport0"):
        ip("link", "del", name)


def test_networks_that_cannot_be(agent: Agent, devices: None) -> None:
    taken = spec(dhcp=False)
    ip("link", "add", bridge_name(taken.id), "type", "veth", "peer", "name", "fthere1")
    own = agent.http.get("/agent/v1/inventory").json()["network"]["bridge"]
    good = spec(dhcp=False, cidr="10.201.8.0/24")

    def bridged(uplink: str) -> HostNetworkSpec:
        return spec(kind="bridged", uplink=uplink, dhcp=False, cidr="10.201.9.0/24")

    wrong: list[tuple[HostNetworkSpec, str, str]] = [
        (taken, "device named nb", "ip -d link show"),
        (spec(dhcp=False, cidr="198.51.100.0/25"), "already has a route to", "another subnet"),
        (bridged("fnone0"), "no interface fnone0", "ip -br link"),
        (bridged("fport0"), "fport0 is a port of another bridge", "name that bridge"),
        (bridged("fwan1"), "has the address 198.51.100.1/24", "make a bridge"),
        (bridged(own), "bridge of another network", "leads out of the host"),
    ]
    before = _devices()
    said = tell(agent, *(each for each, _, _ in wrong), good)
    for (each, because, cure), status in zip(wrong, said.networks, strict=False):
        assert status.id == each.id
        assert status.error is not None, because
        assert because in status.error.message
        assert cure in (status.error.suggestion or "")
    assert said.networks[-1].error is None
    # One that can be is made all the same, and of the others nothing.
    made = {name for name in _devices() if name not in before}
    assert made == {bridge_name(good.id)}
    assert {name: _devices()[name] for name in before} == before
    # The causes go: the bridge that was in the way, and the port's own bridge.
    ip("link", "del", bridge_name(taken.id))
    ip("link", "set", "fport0", "nomaster")
    assert _errors(agent, taken, bridged("fport0")) == [None, None]
    assert _errors(agent) == []
    assert _devices()["fport0"] == _devices()["fwan0"]


@pytest.fixture
def tunnel() -> Iterator[str]:
    """Where routes may lead that come later."""
    ip("link", "add", "fvpn0", "type", "bridge")
    ip("link", "set", "fvpn0", "up")
    yield "fvpn0"
    ip("link", "del", "fvpn0")


def test_rules_stay_for_the_vms_of_a_network_that_cannot_be_any_more(
    agent: Agent, tunnel: str, tiny_kernel: Path
) -> None:
    """A route that overlaps, as of a VPN, comes and goes: guests are never let loose."""
    lab = spec(kind="nat", dhcp=False)
    assert _errors(agent, lab) == [None]

    def on_the_lab(address: str) -> Machine:
        machine = agent.machine(tiny_kernel)
        nic = machine.nics[0].model_copy(update={"network": lab.id, "ip": f"{address}/24"})
        return machine.model_copy(update={"nics": [nic]})

    machine = on_the_lab("10.201.7.9")
    agent.put(machine)
    until("it runs", lambda: agent.get(machine.id).state == "running")
    tap = tap_name(machine.id, 0)
    before = _rules_on(bridge_name(lab.id), tap)
    assert before
    ip("route", "add", "10.201.0.0/16", "dev", tunnel)
    (error,) = _errors(agent, lab)
    assert error is not None
    assert "already has a route to" in error.message
    assert _rules_on(bridge_name(lab.id), tap) == before
    agent.kill()
    agent.start()
    assert _rules_on(bridge_name(lab.id), tap) == before
    second = on_the_lab("10.201.7.10")
    refused = until("it is refused", lambda: agent.put(second).error)
    assert "does not have the network of eth0" in refused.message
    agent.delete(second.id)
    ip("route", "del", "10.201.0.0/16", "dev", tunnel)
    assert _errors(agent, lab) == [None]
    assert _rules_on(bridge_name(lab.id), tap) == before


def test_an_uplink_is_one_networks_only(agent: Agent, devices: None, tiny_kernel: Path) -> None:
    """A second network behind it would undo what the first keeps from its guests."""

    def bridged(uplink: str, **change: Any) -> HostNetworkSpec:
        given = {"kind": "bridged", "uplink": uplink, "dhcp": False, "cidr": "198.18.0.0/24"}
        return spec(**{**given, **change})

    ip("link", "set", "fother0", "up")
    first = bridged("fother0", name="first", isolate_vms=True)
    second = bridged("fother0", allow=["tcp/22"])
    machine = agent.machine(tiny_kernel)
    nic = machine.nics[0].model_copy(update={"network": first.id, "ip": "198.18.0.2/24"})
    assert _errors(agent, first) == [None]
    agent.put(machine.model_copy(update={"nics": [nic]}))
    until("it runs", lambda: agent.get(machine.id).state == "running")
    tap = tap_name(machine.id, 0)
    before = _rules_on(tap, "dport 22 accept")
    assert len(before) == 4, "in the sets taps, addresses, apart and foreign"
    none, error = _errors(agent, first, second)
    assert none is None
    assert error is not None
    assert error.message == "fother0 is the uplink of the network first already"
    assert _rules_on(tap, "dport 22 accept") == before
    # An interface that becomes a port of our bridge is not taken away again either.
    plain = [bridged("fwan0", name="plain"), bridged("fwan0", name="more")]
    none, error = _errors(agent, *plain)
    assert none is None
    assert error is not None
    assert "fwan0 is the uplink of the network plain" in error.message
    assert _devices()["fwan0"] == bridge_name(plain[0].id)
    agent.delete(machine.id)
    assert _errors(agent, second) == [None]


def _rules_on(*devices: str) -> list[str]:
    """All of the kernel's rules that name these devices or ports."""
    done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    return [line.strip() for line in done.stdout.splitlines() if any(d in line for d in devices)]


def _errors(agent: Agent, *networks: HostNetworkSpec) -> list[NetworkError | None]:
    return [each.error for each in tell(agent, *networks).networks]


def _devices() -> dict[str, Any]:
    """Every device, and whose port it is."""
    done = subprocess.run(["ip", "-j", "-d", "link"], capture_output=True, check=True)
    return {link["ifname"]: link.get("master") for link in json.loads(done.stdout)}


def test_a_new_tap_may_have_been_taken_into_its_bridge_already() -> None:
    """As an agent does that finds one without a bridge at the moment in which it is made."""
    tap, other = "nxtakenback", "nxother"
    with closing(Links()) as known:
        try:
            for name in ("nxbr1", "nxbr2"):
                ip("link", "add", name, "type", "bridge")
            bridges = [known.find(name) for name in ("nxbr1", "nxbr2")]
            ours, foreign = (bridge.index for bridge in bridges if bridge)
            for name, bridge in ((tap, "nxbr1"), (other, "nxbr2")):
                ip("tuntap", "add", name, "mode", "tap")
                ip("link", "set", name, "master", bridge)
            known._plug_in(tap, ours)
            with pytest.raises(NetworkFailed, match="does not take the TAP nxother"):
                known._plug_in(other, ours)
            found = known.find(tap), known.find(other)
            assert [link.master for link in found if link] == [ours, foreign]
        finally:
            for name in (tap, other, "nxbr1", "nxbr2"):
                known.delete(name)
