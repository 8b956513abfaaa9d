"""VMs made from snapshots, and a VM put back to its own."""

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.origins import Identity
from nexus.manager.db.tables import ImageRow, VmRow
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, until
from tests.manager.test_snapshots import refused, take

pytestmark = pytest.mark.anyio


async def clone(manager: Manager, query: str = "?wait=running", **body: Any) -> dict[str, Any]:
    answer = await manager.http.post(f"/v1/snapshots/base/instantiate{query}", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_clones_are_vms_of_their_own(manager: Manager, agent: AgentDouble) -> None:
    source = await manager.create(
        name="web",
        tags={"team": "blue"},
        ttl=9999,
        restart_policy="always",
        rootfs_size_mib=64,
        drives=[{"name": "db", "size_mib": 8}],
        nics=[{"limits": {"rx_mbit_s": 10.0}}],
        ssh_keys=["ssh-ed25519 AAAAC3Nz"],
    )
    base = await take(manager, name="base")
    made = await clone(manager, name="job", count=3)
    assert [vm["name"] for vm in made["items"]] == ["job-1", "job-2", "job-3"]
    everyone = [source, *made["items"]]
    assert len({vm["nics"][0]["ip"] for vm in everyone}) == 4
    assert len({vm["nics"][0]["mac"] for vm in everyone}) == 4
    first = made["items"][0]
    assert first["origin"] == {"snapshot": base["id"], "name": "base", "boot": 1}
    assert (first["tags"], first["expires_at"]) == ({"team": "blue"}, None)
    assert (first["restart_policy"], first["host_id"]) == ("always", base["host_id"])
    machine, of_source = agent.machines[first["id"]], agent.machines[source["id"]]
    assert machine.origin is not None
    assert (machine.origin.snapshot, machine.origin.boot, machine.boot) == (base["id"], 1, 1)
    for field in ("kernel", "rootfs", "drives", "rootfs_size_mib", "mem_mib", "ssh_keys"):
        assert getattr(machine, field) == getattr(of_source, field)
    assert machine.nics[0].limits == of_source.nics[0].limits
    assert of_source.origin is None
    created = (await manager.http.get("/v1/vms/job-1/events")).json()["items"][0]
    assert (created["reason"], "snapshot base" in created["message"]) == ("created", True)

    other = await clone(
        manager, "?wait=paused", tags={}, start=False, ttl=60, restart_policy="never"
    )
    item = other["item"]
    assert (item["state"], item["tags"], item["restart_policy"]) == ("paused", {}, "never")
    assert item["expires_at"] is not None
    assert agent.machines[item["id"]].power == "paused"
    await manager.http.post(f"/v1/vms/{item['id']}/resume?wait=running")
    assert agent.machines[item["id"]].boot == 1, "resumed, not loaded again"
    # All of them are there, so the snapshot may go.
    assert (await manager.http.delete("/v1/snapshots/base?wait=deleted")).status_code == 200
    await manager.http.post("/v1/vms/job-1/stop?wait=stopped")
    await manager.http.post("/v1/vms/job-1/start?wait=running")
    again = agent.machines[first["id"]]
    assert (again.boot, again.origin) == (2, machine.origin), "a later boot is not loaded"


async def test_the_content_of_a_clone_stays_when_its_snapshot_goes_during_a_sweep(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = manager.runtime.settings.image_root
    root.mkdir(exist_ok=True)
    (root / "disk").write_bytes(b"a disk")
    body = {"kind": "rootfs", "name": "disk", "host_path": "disk"}
    image = (await manager.http.post("/v1/images", json=body)).json()["item"]
    await manager.create(name="web", rootfs="disk")
    await take(manager, name="base")
    await manager.http.delete("/v1/vms/web?wait=deleted")
    async with manager.runtime.db.write() as session:  # as a build that makes it anew
        (await session.get_one(ImageRow, image["id"])).sha256 = "1" * 64
    scalars, looked = AsyncSession.scalars, list[str]()

    async def meanwhile(session: AsyncSession, query: Any, *given: Any, **more: Any) -> Any:
        if not looked and str(query).startswith("SELECT template_versions.images"):
            looked.append("VMs were read, snapshots were not")
            await clone(manager, name="job")
            gone = await manager.http.delete("/v1/snapshots/base?wait=deleted")
            assert gone.status_code == 200, gone.text
        return await scalars(session, query, *given, **more)

    monkeypatch.setattr(AsyncSession, "scalars", meanwhile)
    assert await manager.runtime.images.sweep() == 0
    assert looked
    assert manager.runtime.images.store.has(image["sha256"])


async def test_restored_in_place(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="web", rootfs_size_mib=64)
    base = await take(manager, name="base")
    await manager.http.patch("/v1/vms/web/drives/rootfs?wait=applied", json={"size_mib": 128})
    answer = await manager.http.post("/v1/vms/web/restore?wait=running", json={"snapshot": "base"})
    assert answer.status_code == 200, answer.text
    back = answer.json()["item"]
    assert (back["boot"], back["state"]) == (2, "running")
    assert back["origin"] == {"snapshot": base["id"], "name": "base", "boot": 2}
    assert back["nics"] == vm["nics"], "its addresses stay"
    machine = agent.machines[vm["id"]]
    assert (machine.boot, machine.rootfs_size_mib) == (2, 64), "as large as it was then"
    assert machine.origin is not None
    assert (machine.origin.snapshot, machine.origin.boot) == (base["id"], 2)
    assert "restore_requested" in await manager.reasons("web")

    await manager.http.post("/v1/vms/web/stop?wait=stopped")
    await manager.http.post("/v1/volumes", json={"name": "data", "size_mib": 8})
    await manager.http.post("/v1/volumes/data/attach", json={"vm": "web"})
    code, error, message = await refused(manager, "POST", "/v1/vms/web/restore", snapshot="base")
    assert (code, error, "'data' since" in message) == (409, "invalid_state", True)
    await manager.http.post("/v1/volumes/data/detach?wait=applied")
    await manager.add_image("kernel", "newer")
    async with manager.runtime.db.write() as session:
        row = await session.get_one(VmRow, vm["id"])  # as a rollout does it
        row.kernel = row.kernel.model_copy(update={"name": "newer", "sha256": "e" * 64})
        row.mem_mib = 512

    paused = await manager.http.post(
        "/v1/vms/web/restore?wait=paused", json={"snapshot": base["id"], "start": False}
    )
    assert (paused.json()["item"]["state"], paused.json()["item"]["boot"]) == ("paused", 3)
    assert agent.machines[vm["id"]].kernel == machine.kernel
    assert agent.machines[vm["id"]].mem_mib == machine.mem_mib

    await clone(manager, name="other")
    code, error, message = await refused(manager, "POST", "/v1/vms/other/restore", snapshot="base")
    assert (code, error, "'web'" in message) == (409, "conflict", True)


async def test_who_a_clone_is(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web")
    await take(manager, name="base")
    vm = (await clone(manager, name="twin"))["item"]
    assert vm["identity"] is None

    async def said(state: str) -> dict[str, Any] | None:
        found = await manager.vm("twin")
        known = found["identity"]
        return found if known and known["state"] == state else None

    now = datetime.now(UTC)
    agent.push(vm["id"], identity=Identity(state="pending"))
    await until("it is pending", lambda: said("pending"))
    agent.push(vm["id"], identity=Identity(state="failed", message="no such link", at=now))
    await until("it failed", lambda: said("failed"))
    why = (await manager.http.get("/v1/vms/twin/why")).json()["item"]
    assert "no such link" in why["summary"]
    assert why["next"][0] == "nexus reboot twin"
    agent.push(vm["id"], identity=Identity(state="applied", at=now))
    await until("it is itself", lambda: said("applied"))
    reasons = await manager.reasons("twin")
    assert reasons[-2:] == ["identity_failed", "identified"]
    agent.push(vm["id"], identity=Identity(state="applied", at=now))
    await manager.http.post("/v1/vms/twin/pause?wait=paused")
    assert (await manager.reasons("twin")).count("identified") == 1


async def test_what_cannot_be(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web", mem_mib=1024)
    await take(manager, name="base")
    url = "/v1/snapshots/base/instantiate"
    assert (await refused(manager, "POST", url, name="web"))[:2] == (409, "name_taken")
    assert (await refused(manager, "POST", url, ttl=1, expires_at="2099-01-01T00:00:00Z"))[0] == 422
    assert (await refused(manager, "POST", url, networks=["default", "default"]))[0] == 422
    assert (await refused(manager, "POST", url, networks=["nowhere"]))[0] == 404
    assert (await refused(manager, "POST", url, count=1000))[:2] == (409, "no_capacity")
    assert (await refused(manager, "POST", "/v1/snapshots/nope/instantiate"))[0] == 404
    vms = (await manager.http.get("/v1/vms")).json()["items"]
    assert [vm["name"] for vm in vms] == ["web"], "none of them was made"

    agent.hold = anyio.Event()
    await clone(manager, "", name="slow")
    code, error, message = await refused(manager, "DELETE", "/v1/snapshots/base")
    assert (code, error, "VM slow" in message) == (409, "in_use", True)
    agent.hold.set()
    await manager.becomes("slow", "running")
    assert (await manager.http.delete("/v1/snapshots/base?wait=deleted")).status_code == 200


async def test_a_snapshot_stays_until_its_clones_have_their_disks(
    sqlite_manager: Manager, agent: AgentDouble
) -> None:
    """Also for one that is not to run any more: its next start needs them."""
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web")
    await take(manager, name="base")
    agent.hold = anyio.Event()
    await clone(manager, "", name="job")
    assert (await manager.http.post("/v1/vms/job/stop")).status_code == 200
    answer = await manager.http.delete("/v1/snapshots/base")
    assert (answer.status_code, answer.json()["error"]) == (409, "in_use")
    assert "nexus rm job" in answer.json()["suggestion"]
    agent.hold.set()
    await manager.becomes("job", "stopped")
    assert (await manager.http.delete("/v1/snapshots/base?wait=deleted")).status_code == 200
