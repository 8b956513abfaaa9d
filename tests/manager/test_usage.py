"""What projects and hosts use."""

from typing import Any

import pytest

from nexus.api.usage import Measured
from nexus.manager.db.tables import VolumeRow
from nexus.manager.services.usage import UsageService
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, until

pytestmark = pytest.mark.anyio

MIB = 1 << 20
DATA = [{"name": "data", "size_mib": 60}]


async def usage(manager: Manager) -> dict[str, Any]:
    answer = await manager.http.get("/v1/usage")
    assert answer.status_code == 200, answer.text
    item: dict[str, Any] = answer.json()["item"]
    return item


def space(promised_mib: int, real_mib: int | None) -> dict[str, int | None]:
    return {"promised_mib": promised_mib, "real_mib": real_mib}


async def test_what_is_promised_and_what_is_taken(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="one", vcpu=2, mem_mib=64, drives=DATA, rootfs_size_mib=40)
    volume = (await manager.http.post("/v1/volumes", json={"name": "v", "size_mib": 50})).json()
    await manager.create(name="two", mem_mib=32, drives=[{"name": "v", "volume": "v"}])
    agent.use = Measured(
        vms={vm["id"]: 3 * MIB + 1},
        volumes={volume["id"]: 5 * MIB},
        snapshots={},
        images_bytes=7 * MIB,
        images_size_bytes=70 * MIB,
    )
    agent.hang_up()  # Whoever comes back is asked at once.

    async def measured() -> dict[str, Any] | None:
        said = await usage(manager)
        return said if said["projects"][0]["space"]["disks"]["real_mib"] else None

    said = await until("the host is measured", measured)
    (project,) = said["projects"]
    assert [project[name] for name in ("project", "vms", "vcpu", "mem_mib")] == [
        *("default", 2, 3, 96)
    ]
    assert project["space"] == {
        "disks": space(101, 4),
        "volumes": space(50, 5),
        "snapshots": space(0, 0),
        "images": space(1, 0),
    }
    (host,) = said["hosts"]
    assert host["space"] == {**project["space"], "images": space(70, 7)}
    assert (host["host_id"], host["disk_mib"]) == (agent.host_id, 10**6)
    shown = (await manager.http.get(f"/v1/hosts/{agent.host_id}")).json()["item"]
    assert shown["use"] == host

    # Another project sees its own; what its host has not told of yet is not made up.
    async with manager.runtime.db.write() as session:
        row = await session.get_one(VolumeRow, volume["id"])
        row.project = "blue"
    service = UsageService(manager.runtime.db, manager.runtime.images.store)
    (blue,) = (await service.get("blue")).projects
    assert (blue.project, blue.vms, blue.space.volumes.promised_mib) == ("blue", 0, 50)
    assert [each["project"] for each in (await usage(manager))["projects"]] == ["blue", "default"]
