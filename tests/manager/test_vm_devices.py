"""Drives, NICs, limits and balloons through the API, with an agent double."""

from typing import Any

import pytest

from nexus.api.vms import VmError
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, until

pytestmark = pytest.mark.anyio

FURNISHED: dict[str, Any] = {
    "name": "one",
    "mem_mib": 128,
    "rootfs_size_mib": 100,
    "rootfs_limits": {"iops": 500},
    "drives": [
        {"name": "data", "size_mib": 1024, "limits": {"bandwidth_mib_s": 10}},
        {"name": "tools", "image": "busybox", "read_only": True},
    ],
    "nics": [{}, {"limits": {"rx_mbit_s": 100, "tx_mbit_s": 50}}],
    "balloon": {"target_mib": 32},
}


async def patch(manager: Manager, path: str, body: Any, code: int = 200) -> Any:
    answer = await manager.http.patch(f"/v1/vms/{path}", json=body)
    assert answer.status_code == code, answer.text
    return answer.json() if code >= 400 else answer.json()["item"]


async def test_a_furnished_vm(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(**FURNISHED)
    assert [(d["name"], d["device"], d["size_mib"], d["read_only"]) for d in vm["drives"]] == [
        ("rootfs", "/dev/vda", 100, False),
        ("data", "/dev/vdb", 1024, False),
        ("tools", "/dev/vdc", 1, True),
    ]
    assert vm["drives"][2]["image"]["name"] == "busybox"
    assert vm["drives"][1]["limits"]["bandwidth_mib_s"] == 10
    first, second = vm["nics"]
    assert (first["iface"], first["tap"], first["limits"]) == ("eth0", "tap0", None)
    assert (second["iface"], second["tap"], second["gateway"]) == ("eth1", "tap1", None)
    assert second["limits"] == {"rx_mbit_s": 100, "tx_mbit_s": 50}
    assert len({first["ip"], second["ip"]}) == len({first["mac"], second["mac"]}) == 2
    assert vm["balloon"] == {"target_mib": 32, "deflate_on_oom": True, "stats_interval_s": 5}
    (machine,) = agent.machines.values()
    assert [drive.name for drive in machine.drives] == ["data", "tools"]
    assert (machine.drives[0].size_mib, machine.drives[0].blob) == (1024, None)
    assert machine.rootfs is not None
    assert machine.drives[1].blob == machine.rootfs
    assert (machine.rootfs_size_mib, machine.balloon and machine.balloon.target_mib) == (100, 32)
    in_use = await manager.http.delete(f"/v1/images/{vm['drives'][2]['image']['id']}")
    assert (in_use.status_code, in_use.json()["error"]) == (409, "in_use")


async def test_an_image_under_a_drive_is_in_use(manager: Manager) -> None:
    image_id = await manager.add_image("rootfs", "extra")
    await manager.create(name="user", drives=[{"name": "more", "image": "extra"}])
    answer = await manager.http.delete(f"/v1/images/{image_id}")
    assert (answer.status_code, answer.json()["error"]) == (409, "in_use")
    missing = {"name": "x", "drives": [{"name": "more", "image": "nope"}]}
    answer = await manager.http.post("/v1/vms", json=missing)
    assert (answer.status_code, answer.json()["error"]) == (409, "image_not_ready")


async def test_changes_reach_the_host_and_are_made_once(
    manager: Manager, agent: AgentDouble
) -> None:
    vm = await manager.create(**FURNISHED)
    wait = "?wait=applied"
    limits = {"bandwidth_mib_s": None, "iops": 100}
    after = await patch(manager, f"one/drives/data{wait}", {"limits": limits, "size_mib": 2048})
    assert after["generation"] == vm["generation"] + 1
    assert after["drives"][1]["size_mib"] == 2048
    assert after["drives"][1]["limits"]["iops"] == 100
    assert after["drives"][1]["limits"]["bandwidth_mib_s"] is None
    again = await patch(manager, f"one/drives/data{wait}", {"size_mib": 2048})
    assert again["generation"] == after["generation"]
    await patch(manager, f"one/drives/rootfs{wait}", {"limits": None, "size_mib": 200})
    await patch(manager, f"one/nics/eth1{wait}", {"limits": {"rx_mbit_s": 7.5}})
    last = await patch(manager, f"one/balloon{wait}", {"target_mib": 64})
    (machine,) = agent.machines.values()
    assert machine.generation == last["generation"] == vm["generation"] + 4
    assert (machine.drives[0].size_mib, machine.rootfs_size_mib) == (2048, 200)
    assert machine.rootfs_limits is None
    assert machine.nics[0].limits is None
    assert machine.nics[1].limits is not None
    assert (machine.nics[1].limits.rx_mbit_s, machine.nics[1].limits.tx_mbit_s) == (7.5, 50)
    assert machine.balloon is not None
    assert machine.balloon.target_mib == 64
    assert agent.boots[vm["id"]] == {1}
    assert await manager.reasons("one") == [
        *("created", "configured", "started"),
        *("drive_changed", "drive_changed", "nic_changed", "balloon_changed"),
    ]


async def test_a_stopped_vm_has_it_at_its_next_boot(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create("?wait=configured", start=False, **FURNISHED)
    after = await patch(manager, "one/nics/eth0?wait=applied", {"limits": {"tx_mbit_s": 1}})
    assert (after["state"], after["nics"][0]["limits"]["tx_mbit_s"]) == ("configured", 1)
    assert agent.boots.get(vm["id"], set()) == set()


async def test_what_cannot_be(manager: Manager) -> None:
    await manager.create(**FURNISHED)
    await manager.create(name="plain")
    for path, body, code, error in [
        ("one/drives/data", {"size_mib": 512}, 409, "conflict"),
        ("one/drives/tools", {"size_mib": 512}, 409, "conflict"),
        ("one/drives/data", {"size_mib": 2_000_000}, 409, "no_capacity"),
        ("one/drives/other", {"size_mib": 512}, 404, "not_found"),
        ("one/drives/..%2f..", {"size_mib": 512}, 404, "not_found"),
        ("one/drives/data", {}, 422, "validation_failed"),
        ("one/nics/eth2", {"limits": None}, 404, "not_found"),
        ("one/balloon", {"target_mib": 120}, 422, "validation_failed"),
        ("plain/balloon", {"target_mib": 20}, 409, "conflict"),
        ("nobody/balloon", {"target_mib": 20}, 404, "not_found"),
    ]:
        refused = await patch(manager, path, body, code)
        assert refused["error"] == error, refused
        assert code != 409 or refused["suggestion"]
    for body in (
        {"drives": [{"name": "huge", "size_mib": 2_000_000}]},
        {"kernel": "debian-cloud", "rootfs_size_mib": 100},
        {"mem_mib": 64, "balloon": {"target_mib": 60}},
        {"drives": [{"name": "a", "size_mib": 1}, {"name": "a", "size_mib": 1}]},
        {"nics": []},
    ):
        answer = await manager.http.post("/v1/vms", json={"name": "never", **body})
        assert answer.status_code in (409, 422), answer.text
        assert (await manager.http.get("/v1/vms/never")).status_code == 404


async def test_a_refusal_is_told_and_does_not_harm_the_vm(
    manager: Manager, agent: AgentDouble
) -> None:
    vm = await manager.create(**FURNISHED)
    agent.refuses = VmError(stage="run", message="no driver", fault_message="not activated yet")
    body = {"target_mib": 64}
    refused = await patch(manager, "one/balloon?wait=applied", body, 400)
    assert (refused["error"], refused["fault_message"]) == ("vmm_fault", "not activated yet")
    now = await manager.vm("one")
    assert (now["state"], now["error"]) == ("running", None)
    assert now["devices_error"]["message"] == "no driver"
    # Asked again, nothing new is wanted, and it is as it was.
    assert (await patch(manager, "one/balloon?wait=applied", body, 400))["error"] == "vmm_fault"
    # The agent tries by itself and succeeds.
    agent.push(vm["id"], devices_applied=True, devices_error=None)

    async def is_clear() -> bool:
        return (await manager.vm("one"))["devices_error"] is None

    await until("the error is gone", is_clear)
    assert (await manager.vm("one"))["balloon"]["target_mib"] == 64
    assert (await manager.reasons("one"))[-3:] == [
        *("balloon_changed", "devices_refused", "devices_applied")
    ]


async def test_many_alike_have_addresses_for_all_nics(manager: Manager) -> None:
    body = {**FURNISHED, "count": 3, "start": False}
    answer = await manager.http.post("/v1/vms", json=body)
    assert answer.status_code == 201, answer.text
    vms = answer.json()["items"]
    assert len({nic["ip"] for vm in vms for nic in vm["nics"]}) == 6
    assert all(len(vm["drives"]) == 3 for vm in vms)
