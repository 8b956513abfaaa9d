"""Templates: versions that never change, and VMs of them."""

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import update

from nexus.manager.db.tables import ImageRow
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager

pytestmark = pytest.mark.anyio

SPEC: dict[str, Any] = {"mem_mib": 64, "vcpu": 2, "tags": {"team": "blue", "tier": "web"}}


@pytest.fixture
async def alone(sqlite_manager: Manager) -> Manager:
    """For what does not depend on the database."""
    await sqlite_manager.add_defaults()
    return sqlite_manager


async def make(manager: Manager, name: str = "web", **body: Any) -> dict[str, Any]:
    answer = await manager.http.post("/v1/templates", json={"name": name, **body})
    assert answer.status_code == 201, answer.text
    item: dict[str, Any] = answer.json()["item"]
    return item


async def change(manager: Manager, ref: str = "web", **spec: Any) -> httpx.Response:
    return await manager.http.patch(f"/v1/templates/{ref}", json={"spec": spec})


async def use(manager: Manager, ref: str = "web", **body: Any) -> dict[str, Any]:
    url = f"/v1/templates/{ref}/instantiate?wait=running"
    answer = await manager.http.post(url, json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def differences(manager: Manager, query: str) -> dict[str, tuple[Any, Any]]:
    answer = await manager.http.get(f"/v1/templates/web/diff{query}")
    changes = answer.json()["item"]["changes"]
    return {each["field"]: (each["before"], each["after"]) for each in changes}


async def test_a_vm_needs_only_a_name(manager: Manager, agent: AgentDouble) -> None:
    made = await make(manager, spec={**SPEC, "ttl": 3600, "drives": [{"name": "d", "size_mib": 8}]})
    assert (made["version"], made["spec"]["mem_mib"]) == (1, 64)
    assert made["images"]["kernel"]["name"] == "debian-cloud"
    answer = await use(manager, name="one")
    vm = answer["item"]
    assert (vm["vcpu"], vm["mem_mib"], vm["tags"]) == (2, 64, SPEC["tags"])
    assert vm["template"] == {"id": made["id"], "name": "web", "version": 1}
    assert (vm["state"], vm["expires_at"] is not None, len(vm["drives"])) == ("running", True, 2)
    assert answer["overrides"] == {}
    assert answer["template"]["spec"] == made["spec"]

    other = await use(
        manager,
        name="two",
        count=2,
        mem_mib=32,
        tags={"team": "red"},
        drives=[],
        expires_at="2030-01-01T00:00:00Z",
    )
    assert [vm["name"] for vm in other["items"]] == ["two-1", "two-2"]
    assert other["overrides"] == {"mem_mib": 32, "tags": {"team": "red"}, "drives": []}
    for vm in other["items"]:
        assert (vm["mem_mib"], vm["vcpu"], len(vm["drives"])) == (32, 2, 1)
        assert vm["tags"] == {"team": "red", "tier": "web"}
        assert vm["expires_at"] == "2030-01-01T00:00:00Z"
        assert agent.machines[vm["id"]].mem_mib == 32

    await manager.create(name="plain")
    for ref in ("web", made["id"]):
        found = (await manager.http.get(f"/v1/vms?template={ref}")).json()["items"]
        assert [vm["name"] for vm in found] == ["one", "two-1", "two-2"]
    assert await differences(manager, "?vm=one") == {}
    assert await differences(manager, "?vm=two-1") == {
        "mem_mib": (64, 32),
        "tags.team": ("blue", "red"),
        "drives.d": ({"name": "d", "size_mib": 8}, None),
    }


async def test_versions_stay_what_they_were(alone: Manager, agent: AgentDouble) -> None:
    manager = alone
    await make(manager, spec=SPEC, note="the first")
    first = (await manager.http.get("/v1/templates/web/versions/1")).json()["item"]
    assert (await change(manager, mem_mib=64)).json()["item"]["version"] == 1
    changed = await change(manager, mem_mib=128, tags={"team": "red"})
    assert changed.json()["item"]["version"] == 2
    assert changed.json()["item"]["spec"]["tags"] == {"team": "red"}
    assert changed.json()["item"]["spec"]["vcpu"] == 2
    listed = (await manager.http.get("/v1/templates/web/versions?limit=1")).json()
    assert listed["items"] == [first]
    rest = await manager.http.get(f"/v1/templates/web/versions?cursor={listed['next_cursor']}")
    assert [item["version"] for item in rest.json()["items"]] == [2]
    assert (await manager.http.get("/v1/templates/web/versions/3")).status_code == 404

    assert (await use(manager, name="old", version=1))["item"]["mem_mib"] == 64
    assert (await use(manager, name="new"))["item"]["mem_mib"] == 128
    told = {
        "mem_mib": (64, 128),
        "tags.team": ("blue", "red"),
        "tags.tier": ("web", None),
    }
    assert await differences(manager, "") == told
    assert await differences(manager, "?before=1&after=2") == told
    assert await differences(manager, "?vm=old&before=2") == {
        field: (after, before) for field, (before, after) in told.items()
    }


async def test_a_version_is_of_content_not_of_names(alone: Manager, agent: AgentDouble) -> None:
    manager = alone
    kernel = await manager.add_image("kernel", "k")
    await make(manager, spec={"kernel": "k", "mem_mib": 32})
    async with manager.runtime.db.write() as session:
        values = {"sha256": "1" * 64}
        await session.execute(update(ImageRow).where(ImageRow.id == kernel).values(**values))
    before = (await use(manager, name="a"))["item"]
    assert (before["kernel"]["sha256"], before["rootfs"]) != ("1" * 64, None)
    assert (await use(manager, name="b", kernel="k"))["item"]["kernel"]["sha256"] == "1" * 64
    assert (await change(manager, kernel="k")).json()["item"]["version"] == 2
    assert (await use(manager, name="c"))["item"]["kernel"]["sha256"] == "1" * 64
    assert (await use(manager, name="d", version=1))["item"]["kernel"] == before["kernel"]
    defaults = await use(manager, name="e", kernel="debian-cloud", rootfs="busybox")
    assert defaults["item"]["initrd"]["name"] == "debian-cloud"


async def test_images_of_templates_are_kept(
    alone: Manager, agent: AgentDouble, tmp_path: Path
) -> None:
    manager = alone
    images = manager.runtime.settings.image_root
    images.mkdir(exist_ok=True)
    for name in ("one", "two"):
        (images / name).write_bytes(name.encode() * 500)
        body = {"kind": "rootfs", "name": name, "host_path": name}
        assert (await manager.http.post("/v1/images", json=body)).status_code == 201
    store = manager.runtime.images.store
    made = await make(manager, spec={"rootfs": "one"})
    sha256 = made["images"]["rootfs"]["sha256"]
    refused = await manager.http.delete("/v1/images/one")
    assert (refused.status_code, refused.json()["error"]) == (409, "in_use")
    assert "web" in refused.json()["message"]
    await change(manager, rootfs="two")
    assert (await manager.http.delete("/v1/images/one")).status_code == 200
    await manager.runtime.images.sweep()
    assert store.has(sha256)
    vm = (await use(manager, name="old", version=1))["item"]
    assert vm["rootfs"]["sha256"] == sha256

    assert (await manager.http.delete("/v1/templates/web")).status_code == 200
    assert store.has(sha256)
    found = (await manager.http.get("/v1/vms?template=web")).json()["items"]
    assert [(vm["name"], vm["template"]["version"]) for vm in found] == [("old", 1)]
    await manager.http.delete("/v1/vms/old?wait=deleted")
    again = await make(manager, spec={"rootfs": "two"})
    assert again["id"] != made["id"]
    await manager.http.delete("/v1/templates/web")
    assert not store.has(sha256) or await manager.runtime.images.sweep()
    assert not store.has(sha256)


async def test_from_a_vm(alone: Manager) -> None:
    manager = alone
    await manager.add_image("kernel", "tiny")
    body = {"kernel": "tiny", "mem_mib": 48, "tags": {"a": "b"}, "balloon": {"target_mib": 0}}
    drives = [{"name": "d", "size_mib": 8, "limits": {"iops": 9}}]
    nics = [{"limits": {"rx_mbit_s": 5}}]
    await manager.create(name="source", drives=drives, nics=nics, **body)
    made = await make(manager, from_vm="source", spec={"vcpu": 3})
    spec = made["spec"]
    assert (spec["vcpu"], spec["mem_mib"], spec["kernel"], spec["rootfs"]) == (3, 48, "tiny", None)
    copy = (await use(manager, name="copy"))["item"]
    source = await manager.vm("source")
    for field in ("mem_mib", "kernel", "rootfs", "initrd", "drives", "tags", "balloon"):
        assert copy[field] == source[field]
    assert copy["nics"][0]["ip"] != source["nics"][0]["ip"]
    assert copy["nics"][0]["limits"] == source["nics"][0]["limits"]
    assert await differences(manager, "?vm=source") == {"vcpu": (3, 1)}

    await manager.http.post("/v1/volumes", json={"name": "data", "size_mib": 8})
    await manager.create(name="bound", drives=[{"name": "d", "volume": "data"}])
    refused = await manager.http.post("/v1/templates", json={"name": "x", "from_vm": "bound"})
    assert (refused.status_code, "volume" in refused.json()["message"]) == (422, True)
    assert (await make(manager, "x", from_vm="bound", spec={"drives": []}))["spec"]["drives"] == []


async def test_what_cannot_be(alone: Manager) -> None:
    manager = alone
    await make(manager)
    for body, status, error in (
        ({"name": "web"}, 409, "name_taken"),
        ({"name": "a", "spec": {"kernel": "nope"}}, 409, "image_not_ready"),
        ({"name": "a", "spec": {"nics": [{"network": "nope"}]}}, 404, "not_found"),
        ({"name": "a", "from_vm": "nope"}, 404, "not_found"),
        ({"name": "a", "spec": {"nics": [{"ip": "10.77.0.9"}]}}, 422, "validation_failed"),
        ({"name": "a", "spec": {"kernel": "debian-cloud", "rootfs_size_mib": 9}}, 422, None),
        ({"name": "a", "spec": {"name": "b"}}, 422, "validation_failed"),
        ({"name": "a", "spec": {"expires_at": "2030-01-01T00:00:00Z"}}, 422, None),
        ({"name": "a", "spec": {"kernel": "/etc/passwd"}}, 403, "path_refused"),
    ):
        answer = await manager.http.post("/v1/templates", json=body)
        assert (answer.status_code, answer.json()["error"]) == (
            status,
            error or "validation_failed",
        ), body
    assert (await change(manager, vcpu=None)).status_code == 422
    assert (await change(manager)).status_code == 422
    assert (await change(manager, "nope", vcpu=1)).status_code == 404
    stale = {"if-match": '"0"'}
    for refused in (
        await manager.http.patch("/v1/templates/web", json={"spec": {"vcpu": 2}}, headers=stale),
        await manager.http.delete("/v1/templates/web", headers=stale),
    ):
        assert refused.status_code == 412
    for body in ({"version": 2}, {"version": 0}, {"mem_mib": 1}, {"mem_mib": None}):
        answer = await manager.http.post("/v1/templates/web/instantiate", json=body)
        assert answer.status_code == (404 if body == {"version": 2} else 422), answer.text
    assert (await manager.http.get("/v1/vms")).json()["items"] == []


async def test_changes_at_once_are_versions_in_a_row(manager: Manager) -> None:
    await make(manager)
    answers: list[int] = []

    async def send(number: int) -> None:
        answers.append((await change(manager, mem_mib=100 + number)).json()["item"]["version"])

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(send, number)
    assert sorted(answers) == list(range(2, 10))


async def test_pages(alone: Manager) -> None:
    manager = alone
    names = [(await make(manager, f"t{number}"))["name"] for number in range(3)]
    await make(manager, "other")
    first = (await manager.http.get("/v1/templates?limit=2&name=t")).json()
    url = f"/v1/templates?limit=2&name=t&cursor={first['next_cursor']}"
    rest = (await manager.http.get(url)).json()
    assert [item["name"] for item in first["items"] + rest["items"]] == names
    assert rest["next_cursor"] is None
