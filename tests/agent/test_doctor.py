"""Why a VM reaches nothing: the rules of it, and things that are broken on a real host."""

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.agent import nft
from nexus.agent.bridges import bridge_name
from nexus.agent.doctor import Facts, NicFacts, findings
from nexus.agent.installation import Installation
from nexus.agent.layout import tap_name
from nexus.agent.links import Link
from nexus.agent.rules import Segment
from nexus.agent.ruleset import differences, parsed
from nexus.api.doctor import Check, Diagnosis
from nexus.api.guest import GuestAddress
from nexus.api.machines import Machine, MachineNic
from nexus.api.networks import HostForward, HostNetworks, NetworkError
from tests.agent.harness import Agent
from tests.agent.packets import ip
from tests.agent.test_dhcp import spec

MAC = "02:00:00:00:00:05"
FORWARD = HostForward(protocol="tcp", host_port=8080, ip="10.64.0.5", guest_port=80)
NIC = NicFacts(
    nic=MachineNic(iface="eth0", mac=MAC, ip="10.64.0.5/24", gateway="10.64.0.1", dns=[]),
    tap="nx1",
    wanted_owner=1500,
    network="lab",
    segment=Segment("br0", "nat", ipaddress.IPv4Network("10.64.0.0/24"), dhcp=True),
    uplink="eth9",
    bridge_link=Link(7, "br0", None, "bridge", None, up=True, carrier=True),
    bridge_addresses=(ipaddress.IPv4Interface("10.64.0.1/24"),),
    tap_link=Link(8, "nx1", None, "tun", 7, up=True, carrier=True, owner=1500),
    uplink_link=Link(9, "eth9", None, None, 7, up=True, carrier=True),
    admitted=True,
    server_pid=42,
    leased=True,
    answered=MAC,
    asked=True,
)
WELL = Facts(
    name="web",
    state="running",
    nics=(NIC,),
    forwarding=True,
    differences=(),
    guest=(GuestAddress(iface="eth0", mac=MAC, ip="10.64.0.5/24"),),
    forwards=(FORWARD,),
    held_forwards=frozenset({FORWARD}),
)


def link(of: Link | None, **change: Any) -> Link:
    assert of is not None
    return replace(of, **change)


def nic(**change: Any) -> Facts:
    return replace(WELL, nics=(replace(NIC, **change),))


def bad(checks: list[Check]) -> list[str]:
    return [check.step for check in checks if check.outcome == "bad"]


def test_nothing_is_wrong_with_what_is_well() -> None:
    checks = findings(WELL)
    assert {check.outcome for check in checks} == {"ok"}
    assert len({check.step for check in checks}) == 12


TAP, BRIDGE, UPLINK = NIC.tap_link, NIC.bridge_link, NIC.uplink_link


@pytest.mark.parametrize(
    ("facts", "step", "cure"),
    [
        (replace(WELL, state="paused"), "vm", "nexus resume web"),
        (replace(WELL, state="stopped"), "vm", "nexus start web"),
        (nic(network=None, segment=None), "network", "nexus network ls"),
        (nic(segment=None), "network", "nexus network show lab"),
        (
            nic(segment=None, error=NetworkError(message="no eth9", suggestion="ip link")),
            "network",
            "ip link",
        ),
        (nic(bridge_link=None), "bridge", "restart the agent"),
        (nic(bridge_link=link(BRIDGE, up=False)), "bridge", "ip link set br0 up"),
        (nic(bridge_addresses=()), "bridge", "ip addr add 10.64.0.1/24 dev br0"),
        (nic(uplink_link=None), "uplink", "ip -br link"),
        (nic(uplink_link=link(UPLINK, up=False)), "uplink", "ip link set eth9 up"),
        (nic(uplink_link=link(UPLINK, master=1)), "uplink", "ip link set eth9 master br0"),
        (nic(uplink_link=link(UPLINK, carrier=False)), "uplink", "cable"),
        (nic(tap_link=None), "tap", "nexus reboot web"),
        (nic(tap_link=link(TAP, kind="veth")), "tap", "ip -d link show nx1"),
        (nic(tap_link=link(TAP, master=None)), "tap", "ip link set nx1 master br0"),
        (nic(tap_link=link(TAP, up=False)), "tap", "ip link set nx1 up"),
        (nic(tap_link=link(TAP, owner=0)), "tap", "nexus reboot web"),
        (nic(tap_link=link(TAP, carrier=False)), "tap", "nexus why web"),
        (nic(admitted=False), "addresses", "restart the agent"),
        (replace(WELL, differences=["bridge set taps lacks nx1"]), "rules", "restart the agent"),
        (replace(WELL, differences=None), "rules", "restart the agent"),
        (replace(WELL, forwarding=False), "forwarding", "net.ipv4.ip_forward=1"),
        (nic(server_pid=None), "dhcp", "journalctl"),
        (nic(leased=False), "dhcp", "restart the agent"),
        (nic(answered=None), "arp", "nexus console web"),
        (nic(answered="02:00:00:00:00:66"), "arp", "another address"),
        (replace(WELL, guest=()), "guest", "nexus exec web"),
        (replace(WELL, held_forwards=frozenset()), "forward", "restart the agent"),
    ],
)
def test_one_thing_that_is_wrong_is_named(facts: Facts, step: str, cure: str) -> None:
    checks = findings(facts)
    assert bad(checks) == [step]
    assert cure in next(check.suggestion or "" for check in checks if check.outcome == "bad")


nics = st.builds(
    replace,
    st.just(NIC),
    network=st.none() | st.just("lab"),
    segment=st.sampled_from(
        [None, NIC.segment, Segment("br0", "isolated", ipaddress.IPv4Network("10.64.0.0/24"))]
    ),
    bridge_link=st.none() | st.builds(replace, st.just(BRIDGE), up=st.booleans()),
    tap_link=st.none() | st.builds(replace, st.just(TAP), up=st.booleans(), master=st.just(3)),
    uplink=st.none() | st.just("eth9"),
    uplink_link=st.none() | st.just(UPLINK),
    admitted=st.none() | st.booleans(),
    server_pid=st.none() | st.just(1),
    answered=st.none() | st.just(MAC),
    asked=st.booleans(),
)


@given(
    st.builds(
        replace,
        st.just(WELL),
        nics=st.lists(nics, max_size=3),
        state=st.sampled_from(["preparing", "running", "paused", "stopped", "error"]),
        differences=st.none() | st.lists(st.just("x"), max_size=5),
        guest=st.none() | st.just(()),
        held_forwards=st.none() | st.just(frozenset()),
    )
)
def test_whatever_is_seen_every_fault_has_a_cure(facts: Facts) -> None:
    for check in findings(facts):
        assert check.message
        assert bool(check.suggestion) == (check.outcome == "bad")


def test_what_the_kernel_lacks_and_has_besides() -> None:
    def listing(elements: list[str], verdicts: list[str]) -> list[dict[str, Any]]:
        about = {"family": "bridge", "table": "t"}
        return [
            {"metainfo": {"version": "1"}},
            {"table": {"family": "bridge", "name": "other"}},
            {"table": {"family": "bridge", "name": "t", "handle": 1}},
            {"set": {**about, "name": "taps", "elem": elements}},
            {"chain": {**about, "name": "c", "hook": "forward", "prio": 0, "policy": "accept"}},
            *({"rule": {**about, "chain": "c", "expr": [{v: None}]}} for v in verdicts),
        ]

    wanted = parsed(listing(["a", "b"], ["drop", "accept"]), "t")
    assert differences(wanted, parsed(listing(["b", "a"], ["drop", "accept"]), "t")) == []
    assert differences(wanted, parsed(listing(["a", "c"], ["accept"]), "t")) == [
        'bridge set taps lacks the element "b"',
        'bridge set taps has besides the element "c"',
        'bridge chain c lacks the rule [{"drop": null}]',
    ]
    swapped = differences(wanted, parsed(listing(["a", "b"], ["accept", "drop"]), "t"))
    assert swapped == ["bridge chain c has its rules in another order"]
    assert "bridge table is missing" in differences(wanted, parsed([], "t"))


@pytest.mark.root
@pytest.mark.firecracker
def test_what_is_broken_on_a_host_is_named(agent: Agent, tiny_kernel: Path) -> None:
    lab = spec(kind="nat", gateway="10.201.7.1")
    machine = agent.machine(tiny_kernel)
    first = machine.nics[0].model_copy(update={"network": lab.id, "ip": "10.201.7.9/24"})
    machine = machine.model_copy(update={"nics": [first]})
    forward = HostForward(protocol="tcp", host_port=8080, ip="10.201.7.9", guest_port=80)
    wanted = HostNetworks(networks=[lab], forwards=[forward])
    told = agent.http.put("/agent/v1/networks", json=wanted.model_dump(mode="json"))
    assert told.json()["networks"][0]["error"] is None
    agent.put(machine)
    tap, bridge = tap_name(machine.id, 0), bridge_name(lab.id)
    # Other installations may have theirs beside it.
    table = Installation(id=agent.http.get("/agent/v1/inventory").json()["host_id"]).table

    # The tiny guest has no network; everything on the host is as it should be.
    seen = diagnosis(agent, machine)
    assert [(each.step, each.outcome) for each in seen.checks if each.outcome != "ok"] == [
        ("guest", "unknown"),
        ("arp", "bad"),
    ]
    assert seen.forwards == [forward]

    ip("link", "set", tap, "down")
    ip("addr", "del", "10.201.7.1/24", "dev", bridge)
    element = f"{{ {tap} . {first.mac} . 10.201.7.9 }}"
    nft.apply(f"delete element bridge {table} addresses {element}")
    nft.apply(f"flush map inet {table} forwards")
    nft.apply(f"add rule inet {table} input accept")
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    forwarding.write_text("0")
    found = [each for each in diagnosis(agent, machine).checks if each.outcome == "bad"]
    forwarding.write_text("1")
    said = "\n".join(f"{each.step}: {each.message}" for each in found)
    for words in (
        f"tap: {tap} is down",
        f"bridge: the bridge {bridge} has lost its address 10.201.7.1/24",
        f"addresses: the rules do not let {tap} speak as {first.mac} 10.201.7.9",
        "rules: they are not as they should be: bridge set addresses lacks the element",
        "forwarding: IPv4 forwarding is off",
        "forward: the kernel does not know that tcp port 8080 leads to 10.201.7.9:80",
    ):
        assert words in said
    assert "inet chain input has besides the rule" in said
    # Looking has mended nothing, and the cure does.
    assert f"tap: {tap} is down" in said
    agent.kill()
    ip("link", "set", tap, "up")
    agent.start()
    told = agent.http.put("/agent/v1/networks", json=wanted.model_dump(mode="json"))
    assert bad(diagnosis(agent, machine).checks) == ["arp"]
    missing = agent.http.get(f"/agent/v1/vms/{lab.id}/network-doctor")
    assert missing.status_code == 404


def diagnosis(agent: Agent, machine: Machine) -> Diagnosis:
    answer = agent.http.get(f"/agent/v1/vms/{machine.id}/network-doctor")
    assert answer.status_code == 200, answer.text
    return Diagnosis.model_validate_json(answer.content)
