"""Volumes: made, given to VMs, free again, deleted."""

from typing import Any

import anyio
import httpx
import pytest

from tests.manager.agent_double import AgentDouble, refusing
from tests.manager.core import Manager

pytestmark = pytest.mark.anyio

ON_DATA = [{"name": "db", "volume": "data"}]


async def make(manager: Manager, name: str = "data", size_mib: int = 64) -> dict[str, Any]:
    answer = await manager.http.post("/v1/volumes", json={"name": name, "size_mib": size_mib})
    assert answer.status_code == 201, answer.text
    item: dict[str, Any] = answer.json()["item"]
    return item


async def state(manager: Manager, ref: str = "data") -> tuple[str, str | None]:
    item = (await manager.http.get(f"/v1/volumes/{ref}")).json()["item"]
    return item["state"], item["vm_name"]


async def refused(manager: Manager, status: int, *drives: Any, **body: Any) -> tuple[str, str]:
    answer = await manager.http.post("/v1/vms", json={"drives": drives, "mem_mib": 32, **body})
    assert answer.status_code == status, answer.text
    assert status == 422 or answer.json()["suggestion"]
    return answer.json()["error"], answer.json()["message"]


async def test_a_volume_outlives_its_vms(manager: Manager, agent: AgentDouble) -> None:
    volume = await make(manager)
    assert (volume["state"], volume["size_mib"], volume["host_id"]) == ("free", 64, agent.host_id)
    vm = await manager.create(name="one", drives=ON_DATA)
    shown = vm["drives"][1]
    assert shown["volume"] == {"id": volume["id"], "name": "data"}
    assert (shown["name"], shown["size_mib"], shown["image"]) == ("db", 64, None)
    (drive,) = agent.machines[vm["id"]].drives
    assert (drive.volume, drive.size_mib, drive.blob) == (volume["id"], 64, None)
    assert await state(manager) == ("attached", "one")

    error, message = await refused(manager, 409, *ON_DATA, name="two")
    assert (error, "one" in message) == ("in_use", True)
    for url in ("/v1/volumes/data", f"/v1/volumes/{volume['id']}"):
        answer = await manager.http.delete(url)
        assert (answer.status_code, answer.json()["error"]) == (409, "in_use")
    grown = await manager.http.patch("/v1/vms/one/drives/db", json={"size_mib": 128})
    assert (grown.status_code, "volume" in grown.json()["message"]) == (409, True)
    limited = await manager.http.patch("/v1/vms/one/drives/db", json={"limits": {"iops": 9}})
    assert limited.status_code == 200

    await manager.http.delete("/v1/vms/one?wait=deleted")
    assert await state(manager) == ("free", None)
    read_only = {"name": "db", "volume": volume["id"], "read_only": True}
    again = await manager.create(name="two", drives=[read_only])
    assert agent.machines[again["id"]].drives[0].read_only
    assert await state(manager) == ("attached", "two")
    await manager.http.delete("/v1/vms/two?wait=deleted")
    assert (await manager.http.delete("/v1/volumes/data")).json() == {"ok": True}
    assert agent.deletes[-1] == volume["id"]
    assert (await manager.http.get("/v1/volumes")).json()["items"] == []
    assert (await manager.http.get("/v1/volumes/data")).status_code == 404


async def test_what_cannot_be(manager: Manager) -> None:
    await make(manager)
    taken = await manager.http.post("/v1/volumes", json={"name": "data", "size_mib": 1})
    assert (taken.status_code, taken.json()["error"]) == (409, "name_taken")
    large = await manager.http.post("/v1/volumes", json={"name": "big", "size_mib": 10**7})
    assert (large.status_code, large.json()["error"]) == (409, "no_capacity")
    assert (await refused(manager, 422, *ON_DATA, count=2))[0] == "validation_failed"
    twice = ({"name": "a", "volume": "data"}, {"name": "b", "volume": "data"})
    assert (await refused(manager, 422, *twice))[0] == "validation_failed"
    assert (await refused(manager, 404, {"name": "a", "volume": "nope"}))[0] == "not_found"
    assert (await refused(manager, 422, {"name": "a", "volume": "data", "size_mib": 1}))[0]
    assert await state(manager) == ("free", None)


async def test_of_many_one_gets_it(manager: Manager) -> None:
    await make(manager)
    answers: list[httpx.Response] = []

    async def send(number: int) -> None:
        body = {"name": f"vm-{number}", "mem_mib": 32, "drives": ON_DATA}
        answers.append(await manager.http.post("/v1/vms", json=body))

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(send, number)
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    made = next(answer.json()["item"] for answer in answers if answer.status_code == 201)
    assert await state(manager) == ("attached", made["name"])


async def test_a_host_that_does_not_answer(manager: Manager, agent: AgentDouble) -> None:
    volume = await make(manager)
    agent.faults.append(refusing())
    answer = await manager.http.delete("/v1/volumes/data")
    assert (answer.status_code, answer.json()["error"]) == (502, "host_unreachable")
    assert await state(manager) == ("deleting", None)
    assert (await refused(manager, 409, *ON_DATA))[0] == "invalid_state"
    assert (await manager.http.delete("/v1/volumes/data")).status_code == 200
    assert agent.deletes == [volume["id"]]


async def test_pages(manager: Manager) -> None:
    names = [(await make(manager, f"v{number}"))["name"] for number in range(3)]
    first = (await manager.http.get("/v1/volumes?limit=2")).json()
    rest = (await manager.http.get(f"/v1/volumes?limit=2&cursor={first['next_cursor']}")).json()
    assert [item["name"] for item in first["items"] + rest["items"]] == names
    assert rest["next_cursor"] is None
