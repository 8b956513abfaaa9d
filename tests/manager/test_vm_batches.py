"""Many VMs in one request: all of them or none, each with a name and an address of its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from nexus.api.errors import NoCapacity, ValidationFailed
from nexus.api.vms import VmCreate, VmError
from nexus.manager.db.network_tables import IpAddressRow
from nexus.manager.db.tables import VmRow
from nexus.manager.scheduler import HostRoom, Request, place_all
from nexus.manager.services.vm_creation import names_of
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager

pytestmark = pytest.mark.anyio


async def test_many_at_once(manager: Manager, agent: AgentDouble) -> None:
    body = {"name": "job", "count": 25, "mem_mib": 64, "tags": {"team": "blue"}}
    answer = await manager.http.post("/v1/vms?wait=running", json=body)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    items = made["items"]
    assert made["id"] == made["item"]["id"] == items[0]["id"]
    assert [vm["name"] for vm in items] == [f"job-{number}" for number in range(1, 26)]
    assert {vm["state"] for vm in items} == {"running"}
    assert len({vm["nics"][0]["ip"] for vm in items}) == 25
    assert set(agent.machines) == {vm["id"] for vm in items}
    assert await manager.reasons("job-25") == ["created", "configured", "started"]


async def test_one_has_no_list_and_one_of_one_has(manager: Manager) -> None:
    single = await manager.http.post("/v1/vms", json={"name": "one", "start": False})
    assert set(single.json()) == {"id", "item"}
    counted = await manager.http.post("/v1/vms", json={"count": 1, "start": False})
    assert len(counted.json()["items"]) == 1


async def test_all_or_none(manager: Manager, agent: AgentDouble) -> None:
    await manager.create("", name="job-3", start=False)
    taken = await manager.http.post("/v1/vms", json={"name": "job", "count": 5})
    assert (taken.status_code, taken.json()["error"]) == (409, "name_taken")
    assert "job-3" in taken.json()["message"]
    too_much = {"count": 5, "mem_mib": agent.mem_mib // 4}
    full = await manager.http.post("/v1/vms", json=too_much)
    assert (full.status_code, full.json()["error"]) == (409, "no_capacity")
    assert "room for 3" in full.json()["message"]
    async with manager.runtime.db.read() as session:
        assert await session.scalar(select(func.count()).select_from(VmRow)) == 1
        assert await session.scalar(select(func.count()).select_from(IpAddressRow)) == 1


async def test_a_failing_one_is_told_among_the_others(manager: Manager, agent: AgentDouble) -> None:
    agent.fails_with, agent.fails_only = VmError(stage="boot", message="no kernel"), "odd-2"
    answer = await manager.http.post("/v1/vms?wait=running", json={"name": "odd", "count": 3})
    assert [vm["state"] for vm in answer.json()["items"]] == ["running", "error", "running"]


@pytest.mark.parametrize("count", [0, -1, 1001, "2", 1.5, True])
async def test_counts_have_bounds(manager: Manager, count: object) -> None:
    answer = await manager.http.post("/v1/vms", json={"count": count})
    assert answer.status_code == 422


def test_a_name_too_long_for_its_number() -> None:
    with pytest.raises(ValidationFailed, match="longer than 63"):
        names_of(VmCreate(name="a" * 62, count=10))


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 8192), st.integers(0, 8192)), min_size=1, max_size=5),
)
def test_a_batch_is_placed_like_one_after_the_other(
    count: int, rooms: list[tuple[int, int]]
) -> None:
    hosts = [
        HostRoom(id=f"h{number}", healthy=True, mem_mib=mem, promised_mem_mib=promised)
        for number, (mem, promised) in enumerate(rooms)
    ]
    slots = {host.id: max(0, (host.mem_mib - host.promised_mem_mib) // 256) for host in hosts}
    try:
        placed = place_all(Request(1, 256), count, hosts)
    except NoCapacity:
        assert sum(slots.values()) < count
        return
    assert len(placed) == count
    for host_id, room in slots.items():
        assert sum(p.host_id == host_id for p in placed) <= room
