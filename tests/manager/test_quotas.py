"""Quotas: what they refuse, and that two requests cannot exceed one together."""

import contextlib
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.api.errors import Forbidden, QuotaExceeded
from nexus.api.quotas import Quota, Resources
from nexus.manager import quotas
from nexus.manager.uow import Caller
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager

pytestmark = pytest.mark.anyio

NAMES = ("vms", "vcpu", "mem_mib", "disk_mib")
AMOUNTS = st.fixed_dictionaries({name: st.integers(0, 9) for name in NAMES})
LIMITS = st.fixed_dictionaries({name: st.none() | st.integers(0, 20) for name in NAMES})
DATA = [{"name": "data", "size_mib": 60}]


@given(LIMITS, st.lists(st.tuples(st.booleans(), AMOUNTS), max_size=30))
def test_what_passes_never_exceeds(
    limits: dict[str, int | None], asks: list[tuple[bool, dict[str, int]]]
) -> None:
    held: list[dict[str, int]] = []
    for gives_back, amounts in asks:
        if gives_back and held:
            held.pop(amounts["vms"] % len(held))
        used = Resources(**{name: sum(each[name] for each in held) for name in NAMES})
        with contextlib.suppress(QuotaExceeded):
            quotas.check("p", Quota(**limits), used, Resources(**amounts))
            held.append(amounts)
        for name in NAMES:
            most = limits[name]
            assert most is None or sum(each[name] for each in held) <= most


@given(AMOUNTS, AMOUNTS)
def test_whoever_is_above_a_lowered_limit_may_ask_for_nothing_more(
    limits: dict[str, int], more: dict[str, int]
) -> None:
    used = Resources(**{name: 10 + limits[name] for name in NAMES})
    quotas.check("p", Quota(**limits), used, Resources())
    if any(more.values()):
        with pytest.raises(QuotaExceeded):
            quotas.check("p", Quota(**limits), used, Resources(**more))


def test_the_refusal_says_which_and_how_much() -> None:
    used, asked = Resources(vms=9, disk_mib=100), Resources(vms=2, mem_mib=5, disk_mib=1)
    with pytest.raises(QuotaExceeded) as refused:
        quotas.check("blue", Quota(vms=10, mem_mib=5, disk_mib=100), used, asked)
    assert "it may have 10 VMs, has 9, and 2 more are asked for; it may" in refused.value.message
    assert "memory" not in refused.value.message
    raised = "nexus quota set blue --vms 11 --disk 101"
    assert raised in str(refused.value.suggestion)


async def set_quota(manager: Manager, project: str = "default", **limits: int) -> None:
    answer = await manager.http.put(f"/v1/projects/{project}/quota", json=limits)
    assert answer.status_code == 200, answer.text


async def used(manager: Manager) -> dict[str, int]:
    answer = await manager.http.get("/v1/projects/default/quota")
    item: dict[str, int] = answer.json()["item"]["used"]
    return item


async def refused(answer: httpx.Response, *words: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (409, "quota_exceeded"), answer.text
    assert all(word in answer.json()["message"] for word in words)
    assert "nexus quota set default" in answer.json()["suggestion"]


async def test_a_project_and_its_quota(manager: Manager, agent: AgentDouble) -> None:
    http = manager.http
    assert (await http.get("/v1/projects/blue/quota")).json()["item"] == {
        "project": "blue",
        "limits": dict.fromkeys(NAMES),
        "used": dict.fromkeys(NAMES, 0),
        "updated_at": None,
    }
    await only_what_makes_sense(manager)
    await set_quota(manager, vms=3, vcpu=4, mem_mib=256, disk_mib=200)
    vm = await manager.create(name="one", vcpu=2, mem_mib=64, drives=DATA, rootfs_size_mib=40)
    await http.post("/v1/volumes", json={"name": "vol", "size_mib": 50})
    assert await used(manager) == {"vms": 1, "vcpu": 2, "mem_mib": 64, "disk_mib": 150}

    too_many = {"name": "x", "count": 3, "mem_mib": 16}
    await refused(await http.post("/v1/vms", json=too_many), "3 VMs, has 1, and 3 more")
    await refused(await http.post("/v1/vms", json={"vcpu": 3, "mem_mib": 16}), "4 vCPUs")
    await refused(await http.post("/v1/vms", json={"mem_mib": 193}), "256 MiB of memory, has 64")
    body = {"mem_mib": 16, "drives": DATA}
    await refused(await http.post("/v1/vms", json=body), "200 MiB of disks, has 150, and 61 more")
    await refused(await http.post("/v1/volumes", json={"name": "b", "size_mib": 51}), "51 more")
    grow = await http.patch(f"/v1/vms/{vm['id']}/drives/data", json={"size_mib": 111})
    await refused(grow, "200 MiB of disks, has 150, and 51 more")
    grow = await http.patch(f"/v1/vms/{vm['id']}/drives/rootfs", json={"size_mib": 90})
    assert grow.status_code == 200, grow.text
    assert (await used(manager))["disk_mib"] == 200

    # Neither a volume that is given to a VM nor an image that is only read counts again.
    drives: list[dict[str, Any]] = [{"name": "v", "volume": "vol"}]
    drives.append({"name": "ro", "image": "busybox", "read_only": True})
    body = {"name": "two", "mem_mib": 16, "drives": drives}
    await refused(await http.post("/v1/vms", json=body), "has 200, and 1 more")
    await set_quota(manager, disk_mib=201)
    await manager.create(**body)
    assert await used(manager) == {"vms": 2, "vcpu": 3, "mem_mib": 80, "disk_mib": 201}

    # Counted is what is wanted, so room is free at once; a limit below what there is lets it be.
    await set_quota(manager, vms=1)
    agent.hold = anyio.Event()
    assert (await http.delete("/v1/vms/one")).status_code == 200
    assert await used(manager) == {"vms": 1, "vcpu": 1, "mem_mib": 16, "disk_mib": 51}
    agent.hold.set()
    assert (await http.patch("/v1/vms/two", json={"name": "three"})).status_code == 200


async def test_many_at_once_do_not_exceed_it(manager: Manager) -> None:
    await set_quota(manager, vms=7, mem_mib=10 * 32)
    answers: list[httpx.Response] = []

    async def send(number: int) -> None:
        body = {"name": f"vm-{number}", "mem_mib": 32, "count": 1 + number % 3}
        answers.append(await manager.http.post("/v1/vms", json=body))

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(send, number)
    assert {answer.status_code for answer in answers} == {201, 409}
    for answer in answers:
        if answer.status_code == 409:
            await refused(answer)
    made = sum(len(answer.json()["items"]) for answer in answers if answer.status_code == 201)
    assert made == (await used(manager))["vms"]
    assert 5 <= made <= 7


async def only_what_makes_sense(manager: Manager) -> None:
    wrong: list[Any] = [{"vms": -1}, {"vms": "3"}, {"vms": 1.5}, {"cpus": 1}, [], {"vms": 2**70}]
    for body in wrong:
        answer = await manager.http.put("/v1/projects/default/quota", json=body)
        assert answer.status_code == 422, answer.text
    blue = Caller("blue's admin", "blue", None, "quotas:write")
    with pytest.raises(Forbidden):
        await manager.runtime.quotas.set(blue, "blue", Quota())
    for name in ("..%2f", "UPPER", "x" * 64, "a_b"):
        assert (await manager.http.get(f"/v1/projects/{name}/quota")).status_code in (404, 422)
