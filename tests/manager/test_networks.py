"""Networks, addresses and port forwards, from the API to what the host is told."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, update

from nexus.api.errors import Conflict
from nexus.api.networks import (
    MOST_FORWARDS,
    MOST_NETWORKS,
    HostForward,
    HostNetworks,
    HostNetworkSpec,
    NetworkError,
)
from nexus.httpd import MAX_BODY_BYTES
from nexus.ids import new_id
from nexus.manager import subnets
from nexus.manager.db.network_tables import NetworkRow, PortForwardRow
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, running, settings_for, until

pytestmark = pytest.mark.anyio


async def make(manager: Manager, **body: Any) -> dict[str, Any]:
    answer = await manager.http.post("/v1/networks?wait=ready", json=body)
    assert answer.status_code == 201, answer.text
    item: dict[str, Any] = answer.json()["item"]
    return item


async def error_of(manager: Manager, method: str, url: str, status: int, **body: Any) -> str:
    answer = await manager.http.request(method, url, json=body or None)
    assert answer.status_code == status, answer.text
    assert answer.json()["suggestion"]
    return str(answer.json()["message"])


async def test_the_hosts_own_network_is_there(manager: Manager) -> None:
    (network,) = (await manager.http.get("/v1/networks")).json()["items"]
    assert (network["name"], network["kind"], network["state"]) == ("default", "nat", "ready")
    assert network["cidr"] == "10.77.0.0/20"
    vm = await manager.create(name="one")
    assert vm["nics"][0]["network"] == "default"
    members = (await manager.http.get("/v1/networks/default/vms")).json()["items"]
    assert [(member["vm_name"], member["ip"]) for member in members] == [("one", "10.77.0.2")]
    assert "own network" in await error_of(manager, "DELETE", "/v1/networks/default", 409)


async def test_a_life_of_a_network(manager: Manager, agent: AgentDouble) -> None:
    network = await make(manager, name="lab", kind="isolated", cidr="192.168.9.0/29")
    assert (network["state"], network["gateway"], network["bridge"]) == ("ready", None, "br-lab")
    spec = next(spec for spec in agent.networks[-1].networks if spec.name == "lab")
    assert (spec.cidr, spec.home, spec.isolate_vms) == ("192.168.9.0/29", False, False)

    vm = await manager.create(name="two", nics=[{}, {"network": "lab"}, {"network": network["id"]}])
    assert [nic["network"] for nic in vm["nics"]] == ["default", "lab", "lab"]
    assert [nic["ip"] for nic in vm["nics"][1:]] == ["192.168.9.2/29", "192.168.9.3/29"]
    assert [nic["gateway"] for nic in vm["nics"]] == ["10.77.0.1", None, None]
    told = agent.puts[-1].nics
    assert [nic.network for nic in told] == [None, network["id"], network["id"]]

    assert "two" in await error_of(manager, "DELETE", "/v1/networks/lab", 409)
    changed = await manager.http.patch("/v1/networks/lab?wait=ready", json={"isolate_vms": True})
    assert changed.json()["item"]["isolate_vms"] is True
    assert next(s for s in agent.networks[-1].networks if s.name == "lab").isolate_vms
    await manager.http.delete("/v1/vms/two?wait=deleted")
    assert (await manager.http.delete("/v1/networks/lab")).json() == {"ok": True}

    async def forgotten() -> bool:
        return [spec.name for spec in agent.networks[-1].networks] == ["default"]

    await until("the host is told", forgotten)


async def test_addresses_are_reserved_and_come_to_an_end(manager: Manager) -> None:
    await make(manager, name="small", cidr="192.168.9.0/29")
    fixed = [{"network": "small", "ip": "192.168.9.4"}]
    vm = await manager.create(name="fixed", nics=fixed)
    assert vm["nics"][0]["ip"] == "192.168.9.4/29"
    taken = await error_of(manager, "POST", "/v1/vms", 409, name="again", nics=fixed)
    assert "192.168.9.4 is in use" in taken
    for bad in ("192.168.9.1", "192.168.9.0", "192.168.9.7", "10.0.0.1"):
        nics = [{"network": "small", "ip": bad}]
        await error_of(manager, "POST", "/v1/vms", 422, name="bad", nics=nics)
    await error_of(manager, "POST", "/v1/vms", 422, name="many", nics=fixed, count=2)

    nics = [{"network": "small"}]
    many = await manager.http.post("/v1/vms", json={"name": "m", "nics": nics, "count": 4})
    addresses = {vm["nics"][0]["ip"] for vm in many.json()["items"]}
    assert addresses == {f"192.168.9.{n}/29" for n in (2, 3, 5, 6)}
    full = await error_of(manager, "POST", "/v1/vms", 409, name="more", nics=nics)
    assert "every address of 192.168.9.0/29" in full
    await manager.http.delete("/v1/vms/fixed?wait=deleted")
    assert (await manager.create(name="more", nics=nics))["nics"][0]["ip"] == "192.168.9.4/29"


async def test_reserved_addresses_go_to_who_asks_for_them(
    manager: Manager, agent: AgentDouble
) -> None:
    body = {"name": "held", "cidr": "192.168.9.0/29", "reserved": ["192.168.9.2-192.168.9.4"]}
    assert (await make(manager, **body))["reserved"] == ["192.168.9.2-192.168.9.4"]
    nics = [{"network": "held"}]
    assert (await manager.create(name="a", nics=nics))["nics"][0]["ip"] == "192.168.9.5/29"
    asked = [{"network": "held", "ip": "192.168.9.3"}]
    assert (await manager.create(name="b", nics=asked))["nics"][0]["ip"] == "192.168.9.3/29"
    assert (await manager.create(name="c", nics=nics))["nics"][0]["ip"] == "192.168.9.6/29"
    full = await error_of(manager, "POST", "/v1/vms", 409, name="d", nics=nics)
    assert "in use or reserved" in full
    # No host is told of it, so none is waited for.
    told = len(agent.networks)
    change = {"reserved": ["192.168.9.2"]}
    changed = await manager.http.patch("/v1/networks/held?wait=ready", json=change)
    assert (changed.json()["item"]["state"], changed.json()["item"]["reserved"]) == (
        "ready",
        ["192.168.9.2"],
    )
    same = await manager.http.patch("/v1/networks/held?wait=ready", json={"isolate_vms": False})
    assert same.json()["item"]["state"] == "ready"
    assert len(agent.networks) == told
    assert (await manager.create(name="d", nics=nics))["nics"][0]["ip"] == "192.168.9.4/29"
    outside = {"reserved": ["10.0.0.1"]}
    assert "not in" in await error_of(manager, "PATCH", "/v1/networks/held", 422, **outside)


async def test_dhcp_makes_the_bridge_the_name_server(manager: Manager, agent: AgentDouble) -> None:
    await make(manager, name="lab", kind="isolated", cidr="192.168.9.0/24", dhcp=True)
    spec = next(spec for spec in agent.networks[-1].networks if spec.name == "lab")
    assert (spec.dhcp, spec.dns, spec.gateway) == (True, None, None)
    await manager.create(name="one", nics=[{"network": "lab"}])
    (nic,) = agent.puts[-1].nics
    assert (nic.gateway, nic.dns) == (None, ["192.168.9.1"])
    # A name that is served is told at once.
    assert (await manager.http.patch("/v1/vms/one", json={"name": "uno"})).status_code == 200

    async def told() -> bool:
        return agent.puts[-1].name == "uno"

    await until("the host is told", told)
    opened = {"allow": ["tcp/5000", "metadata"]}
    changed = await manager.http.patch("/v1/networks/lab?wait=ready", json=opened)
    assert changed.json()["item"]["allow"] == ["tcp/5000", "metadata"]
    spec = next(spec for spec in agent.networks[-1].networks if spec.name == "lab")
    assert spec.allow == ["tcp/5000", "metadata"]
    changed = await manager.http.patch("/v1/networks/lab?wait=ready", json={"dhcp": False})
    assert changed.json()["item"]["dhcp"] is False
    wan = {"name": "wan", "kind": "bridged", "uplink": "eth9", "cidr": "192.0.2.0/24"}
    await make(manager, **wan)
    assert "uplink" in await error_of(manager, "PATCH", "/v1/networks/wan", 409, dhcp=True)


async def test_a_subnet_is_proposed_or_refused(manager: Manager) -> None:
    proposed = await make(manager, name="free")
    assert IPv4Network(proposed["cidr"]).subnet_of(subnets.POOL)
    assert proposed["gateway"] == str(IPv4Network(proposed["cidr"])[1])
    for cidr in (proposed["cidr"], "10.77.8.0/24"):
        refused = await error_of(manager, "POST", "/v1/networks", 409, name="two", cidr=cidr)
        assert "overlaps" in refused
    assert "free" in await error_of(manager, "POST", "/v1/networks", 409, name="free")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a b"},
        {"name": "x" * 33},
        {"name": "x", "kind": "open"},
        {"name": "x", "cidr": "10.0.0.1/24"},
        {"name": "x", "cidr": "10.0.0.0/30"},
        {"name": "x", "cidr": "127.0.0.0/8"},
        {"name": "x", "cidr": "fd00::/64"},
        {"name": "x", "kind": "bridged"},
        {"name": "x", "kind": "bridged", "uplink": "a/b", "cidr": "10.0.0.0/24"},
        {"name": "x", "uplink": "eth1"},
        {"name": "x", "kind": "bridged", "uplink": "a", "cidr": "10.0.0.0/24", "dhcp": True},
        {"name": "x", "dhcp": "yes"},
        {"name": "x", "allow": ["tcp"]},
        {"name": "x", "allow": ["tcp/0"]},
        {"name": "x", "allow": ["icmp/1"]},
        {"name": "x", "allow": ["metadata/80"]},
        {"name": "x", "allow": ["tcp/80"] * 33},
        {"name": "x", "reserved": ["10.0.0.9"]},
        {"name": "x", "cidr": "10.0.0.0/24", "reserved": ["10.0.0.9-10.0.0.5"]},
        {"name": "x", "cidr": "10.0.0.0/24", "reserved": ["10.0.1.9"]},
        {"name": "x", "cidr": "10.0.0.0/24", "reserved": ["10.0.0.5-"]},
        {"name": "x", "cidr": "10.0.0.0/24", "reserved": ["10.0.0.5"] * 65},
        {"name": "x", "dns": ["not an address"]},
        {"name": "x", "unknown": 1},
    ],
)
async def test_bad_networks_are_refused(manager: Manager, body: dict[str, Any]) -> None:
    answer = await manager.http.post("/v1/networks", json=body)
    assert (answer.status_code, answer.json()["error"]) == (422, "validation_failed")


async def test_a_network_that_cannot_be_says_why(manager: Manager, agent: AgentDouble) -> None:
    agent.network_errors["wan"] = NetworkError(message="no interface eth9", suggestion="ip link")
    body = {"name": "wan", "kind": "bridged", "uplink": "eth9", "cidr": "192.0.2.0/24"}
    network = await make(manager, **body)
    assert (network["state"], network["error"]["message"]) == ("error", "no interface eth9")
    refused = await error_of(manager, "POST", "/v1/vms", 409, name="x", nics=[{"network": "wan"}])
    assert "no interface eth9" in refused
    missing = await error_of(manager, "POST", "/v1/vms", 404, name="x", nics=[{"network": "no"}])
    assert "no network" in missing
    # The cause is gone: the host is asked again by itself, and here at once by a change.
    agent.network_errors.clear()
    changed = await manager.http.patch("/v1/networks/wan?wait=ready", json={"isolate_vms": True})
    assert changed.json()["item"]["state"] == "ready"


async def test_an_uplink_is_one_networks_only(manager: Manager) -> None:
    body = {"kind": "bridged", "uplink": "eth9", "cidr": "192.0.2.0/24"}
    await make(manager, name="wan", **body)
    refused = await error_of(manager, "POST", "/v1/networks", 409, name="again", **body)
    assert refused == "eth9 is the uplink of the network 'wan' already"
    ours = update(NetworkRow).where(NetworkRow.name == "wan")
    async with manager.runtime.db.write() as session:
        await session.execute(ours.values(project="theirs"))
    refused = await error_of(manager, "POST", "/v1/networks", 409, name="again", **body)
    assert refused == "eth9 is the uplink of another network already"
    async with manager.runtime.db.write() as session:
        await session.execute(ours.values(project="default"))
    await make(manager, name="dmz", **{**body, "uplink": "eth8"})
    await manager.http.delete("/v1/networks/wan")
    await make(manager, name="again", **body)


async def test_forwards(manager: Manager, agent: AgentDouble) -> None:
    await manager.create(name="web")
    await manager.create(name="other")
    wish = {"host_port": 8080, "guest_port": 80}
    made = await manager.http.post("/v1/vms/web/forwards", json=wish)
    assert made.status_code == 201
    assert made.json()["item"]["ip"] == "10.77.0.2"

    async def told() -> bool:
        forwards = agent.networks[-1].forwards
        return [(f.host_port, f.ip, f.guest_port) for f in forwards] == [(8080, "10.77.0.2", 80)]

    await until("the host is told", told)
    taken = await error_of(manager, "POST", "/v1/vms/other/forwards", 409, **wish)
    assert "8080" in taken
    udp = await manager.http.post("/v1/vms/other/forwards", json={**wish, "protocol": "udp"})
    assert udp.status_code == 201
    own = await error_of(
        manager, "POST", "/v1/vms/web/forwards", 409, host_port=18080, guest_port=80
    )
    assert "manager's own" in own
    for bad in ({"host_port": 0, "guest_port": 80}, {"host_port": 70000, "guest_port": 80}):
        assert (await manager.http.post("/v1/vms/web/forwards", json=bad)).status_code == 422
    listed = (await manager.http.get("/v1/vms/web/forwards")).json()["items"]
    assert [each["id"] for each in listed] == [made.json()["id"]]
    # Somebody else's, then one's own.
    url = f"/v1/vms/other/forwards/{made.json()['id']}"
    await error_of(manager, "DELETE", url, 404)
    assert (await manager.http.delete(url.replace("other", "web"))).json() == {"ok": True}
    await manager.http.delete("/v1/vms/other?wait=deleted")

    async def none_left() -> bool:
        return agent.networks[-1].forwards == []

    await until("forwards go with their VM", none_left)


async def add_networks(manager: Manager, number: int) -> None:
    """Rows as they would be after as many requests."""
    now = datetime.now(UTC)
    async with manager.runtime.db.write() as session:
        session.add_all(
            NetworkRow(
                id=new_id(),
                project="other",
                name=f"n{index}",
                kind="isolated",
                cidr=f"10.{128 + index // 64}.{index % 64 * 4}.0/22",
                state="pending",
                bridge="",
                isolate_vms=False,
                dhcp=False,
                reserved=[],
                allow=[],
                last_address=0,
                created_at=now,
                updated_at=now,
            )
            for index in range(number)
        )


async def test_there_are_no_more_networks_than_a_host_takes(
    manager: Manager, agent: AgentDouble
) -> None:
    await add_networks(manager, MOST_NETWORKS - 2)
    await make(manager, name="last")
    assert len(agent.networks[-1].networks) == MOST_NETWORKS
    refused = await error_of(manager, "POST", "/v1/networks", 409, name="more")
    assert f"there are {MOST_NETWORKS - 1} networks" in refused


async def test_more_networks_than_a_host_takes_stop_nothing_else(
    manager: Manager, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a manager that knew no such bound."""
    monkeypatch.setattr("nexus.manager.pipelines.networks.RETRY_S", 0.1)
    told = len(agent.networks)
    with structlog.testing.capture_logs() as logs:
        await add_networks(manager, MOST_NETWORKS)
        manager.runtime.network_push.hint()

        async def noticed() -> bool:
            return any("cannot be told its networks" in each["event"] for each in logs)

        await until("it is noticed", noticed)
    assert len(agent.networks) == told
    await manager.create(name="one")
    async with manager.runtime.db.write() as session:
        await session.execute(delete(NetworkRow).where(NetworkRow.project == "other"))
    await make(manager, name="again")


def test_all_that_a_host_is_told_fits_into_one_body() -> None:
    spec = HostNetworkSpec(
        id=new_id(),
        name="n" * 32,
        kind="isolated",
        cidr="100.100.100.104/29",
        gateway="100.100.100.105",
        uplink="u" * 15,
        isolate_vms=False,
        dns=["100.100.100.100"] * 3,
        allow=["tcp/65535"] * 32,
    )
    forward = HostForward(protocol="tcp", host_port=65535, ip="100.100.100.100", guest_port=65535)
    wanted = HostNetworks(networks=[spec] * MOST_NETWORKS, forwards=[forward] * MOST_FORWARDS)
    assert len(wanted.model_dump_json()) <= MAX_BODY_BYTES


async def test_there_are_no_more_forwards_than_a_host_is_told(manager: Manager) -> None:
    vm = await manager.create(name="web")
    async with manager.runtime.db.write() as session:
        session.add_all(
            PortForwardRow(
                id=new_id(),
                project="default",
                vm_id=vm["id"],
                host_id=vm["host_id"],
                protocol="udp",
                host_port=1 + index,
                guest_port=1,
                iface="eth0",
                ip="10.77.0.2",
                created_at=datetime.now(UTC),
            )
            for index in range(MOST_FORWARDS)
        )
    wish = {"host_port": 9000, "guest_port": 80}
    refused = await error_of(manager, "POST", "/v1/vms/web/forwards", 409, **wish)
    assert f"{MOST_FORWARDS} ports" in refused


@pytest.mark.parametrize(
    ("setting", "address", "owner"),
    [
        ("agent_url", "http://127.0.0.1:9090", "the agent's"),
        ("agent_url", "http://[::1]:9090", "the agent's"),
        ("database_url", "postgresql://nexus@localhost:9090/nexus", "the database's"),
        ("bind", "0.0.0.0:9090", "the manager's own"),
        ("agent_url", "unix:/run/agent.sock:9090", None),
        ("database_url", "postgresql://nexus@192.0.2.1:9090/nexus", None),
        ("database_url", "postgresql:///nexus", None),
    ],
)
def test_ports_that_nexus_needs_are_known(
    tmp_path: Path, setting: str, address: str, owner: str | None
) -> None:
    settings = settings_for(tmp_path, "sqlite:////nexus.db", "unix:/run/agent.sock")
    assert replace(settings, **{setting: address}).own_ports.get(9090) == owner


async def test_ports_that_nexus_needs_are_not_forwarded(
    tmp_path: Path, sqlite_url: str, agent: AgentDouble
) -> None:
    async with running(settings_for(tmp_path, sqlite_url, agent.url)) as manager:
        forwards = manager.runtime.forwards
        forwards.own_ports = replace(
            manager.runtime.settings, agent_url="http://127.0.0.1:9090"
        ).own_ports
        await manager.add_defaults()
        await manager.create(name="web")
        url, wish = "/v1/vms/web/forwards", {"host_port": 9090, "guest_port": 80}
        assert await error_of(manager, "POST", url, 409, **wish) == "port 9090 is the agent's"
        udp = await manager.http.post(url, json={**wish, "protocol": "udp"})
        assert udp.status_code == 201


async def test_the_doctor_asks_the_host_and_knows_what_it_cannot(
    manager: Manager, agent: AgentDouble
) -> None:
    vm = await manager.create(name="web")
    url = "/v1/vms/web/network-doctor"

    async def steps() -> list[tuple[str, str]]:
        found = (await manager.http.get(url)).json()["item"]
        assert found["healthy"] == all(each["outcome"] != "bad" for each in found["checks"])
        return [(each["step"], each["outcome"]) for each in found["checks"]]

    assert await steps() == [("host", "ok"), ("vm", "ok")]
    await manager.http.post("/v1/vms/web/forwards", json={"host_port": 8080, "guest_port": 80})
    # Until the host was told.
    await until("told", lambda: _is(steps, [("host", "ok"), ("vm", "ok")]))
    agent.networks.append(agent.networks[-1].model_copy(update={"forwards": []}))
    assert ("forward", "bad") in await steps()
    agent.machines.pop(vm["id"])
    assert await steps() == [("host", "bad")]
    await error_of(manager, "GET", "/v1/vms/nobody/network-doctor", 404)


async def _is(ask: Callable[[], Awaitable[object]], wanted: object) -> bool:
    return await ask() == wanted


async def test_isolated_networks_have_no_forwards(manager: Manager) -> None:
    await make(manager, name="alone", kind="isolated")
    await manager.create(name="in", nics=[{"network": "alone"}])
    wish = {"host_port": 8080, "guest_port": 80}
    assert "isolated" in await error_of(manager, "POST", "/v1/vms/in/forwards", 409, **wish)


async def test_the_host_is_told_all_again_after_a_restart(
    tmp_path: Path, database_url: str, agent: AgentDouble
) -> None:
    settings = settings_for(tmp_path, database_url, agent.url)
    async with running(settings) as first:
        await make(first, name="kept")
    before = len(agent.networks)
    async with running(settings):

        async def told() -> bool:
            return len(agent.networks) > before

        await until("the host is told", told)
    assert {spec.name for spec in agent.networks[-1].networks} == {"default", "kept"}


async def test_two_ask_for_one_port_and_one_gets_it(manager: Manager) -> None:
    await manager.create(name="a")
    await manager.create(name="b")
    codes: list[int] = []

    async def ask(vm: str) -> None:
        wish = {"host_port": 9000, "guest_port": 80}
        codes.append((await manager.http.post(f"/v1/vms/{vm}/forwards", json=wish)).status_code)

    async with anyio.create_task_group() as tasks:
        for vm in ("a", "b"):
            tasks.start_soon(ask, vm)
    assert sorted(codes) == [201, 409]


@given(st.uuids().map(str), st.lists(st.integers(0, 511), max_size=300))
def test_a_proposed_subnet_is_free(network_id: str, blocks: list[int]) -> None:
    taken = [IPv4Network((int(subnets.POOL[0]) + (n << 14), 18)) for n in blocks]
    chosen = subnets.propose(network_id, taken)
    assert chosen.subnet_of(subnets.POOL)
    assert not any(chosen.overlaps(other) for other in taken)
    assert chosen == subnets.propose(network_id, taken)


def test_no_subnet_is_left() -> None:
    with pytest.raises(Conflict, match="every /22"):
        subnets.propose("x", [IPv4Network("10.0.0.0/8")])
