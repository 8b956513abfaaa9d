"""Snapshots that leave as an archive and come back as one, here or elsewhere."""

import io
import json
import tarfile
from typing import Any

import anyio
import httpx
import pytest
from fastapi.responses import JSONResponse
from sqlalchemy import select, text

from nexus.api.archives import BLOCK, MANIFEST, META, entry, taken
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import ImageRow
from nexus.manager.services import quotas
from tests.manager.agent_double import AgentDouble, refusing
from tests.manager.core import Manager, until
from tests.manager.test_snapshots import becomes, names, shown, take

pytestmark = pytest.mark.anyio

OCTETS = {"content-type": "application/octet-stream"}


async def exported(manager: Manager, ref: str = "base") -> bytes:
    answer = await manager.http.get(f"/v1/snapshots/{ref}/export")
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["content-length"]) == len(answer.content)
    return answer.content


async def send(manager: Manager, archive: bytes, query: str = "") -> httpx.Response:
    url = f"/v1/snapshots/import{query}"
    return await manager.http.post(url, content=archive, headers=OCTETS)


def with_manifest(archive: bytes, **changes: Any) -> bytes:
    """The same with another beginning."""
    size = tarfile.TarInfo.frombuf(archive[:BLOCK], "utf-8", "strict").size
    known = json.loads(archive[BLOCK : BLOCK + size])
    blueprint = known["blueprint"] | changes.pop("blueprint", {})
    first = json.dumps(known | {"blueprint": blueprint} | changes).encode()
    return entry(MANIFEST, first) + archive[taken(size) :]


async def test_cut_off(manager: Manager, agent: AgentDouble) -> None:
    await manager.create(name="web")
    await take(manager, name="base")
    archive = with_manifest(await exported(manager), name="half")
    agent.shelf.hold, agent.shelf.begun = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send, manager, archive)
        await agent.shelf.begun.wait()
        assert (await shown(manager, "half"))["state"] == "importing"
        refused = await manager.http.delete("/v1/snapshots/half")
        assert (refused.status_code, refused.json()["error"]) == (409, "invalid_state")
        tasks.cancel_scope.cancel()  # the client leaves
        agent.shelf.hold.set()
    assert await names(manager) == ["base"]
    assert len(agent.shelf.held) == 1

    # What a manager that is killed leaves: the row, and a lease that runs out.
    async with manager.runtime.db.write() as session:
        row = await session.scalar(select(SnapshotRow))
        assert row is not None
        row.name, row.state, row.held, row.vm_id = "half", "importing", None, None
        row.lease_owner, row.lease_token, row.lease_expires_at = "dead", "dead", row.created_at
    manager.runtime.snapshot_pipeline.hint()
    half = await becomes(manager, "half", "error")
    assert "cut off" in half["error"]["message"]
    assert (await manager.http.delete("/v1/snapshots/half?wait=deleted")).status_code == 200
    assert agent.shelf.held == {}


async def test_out_and_in_again(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web", tags={"team": "blue"}, drives=[{"name": "db", "size_mib": 8}])
    base = await take(manager, name="base")
    archive = await exported(manager)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == [MANIFEST, META]
    taken_name = await send(manager, archive)
    assert (taken_name.status_code, taken_name.json()["error"]) == (409, "name_taken")
    answer = await send(manager, archive, "?name=again")
    assert answer.status_code == 201, answer.text
    item = answer.json()["item"]
    assert (item["state"], item["vm_id"], item["vm_name"]) == ("ready", None, "web")
    assert (item["files"], item["pause_ms"]) == (base["files"], base["pause_ms"])
    assert item["id"] != base["id"]
    made = await manager.http.post(
        "/v1/snapshots/again/instantiate?wait=running", json={"name": "clone"}
    )
    vm = made.json()["item"]
    assert (vm["tags"], vm["origin"]["name"]) == ({"team": "blue"}, "again")
    assert (await manager.http.delete("/v1/snapshots/again?wait=deleted")).status_code == 200
    assert agent.shelf.held.keys() == {base["id"]}


async def test_an_image_does_not_go_while_a_snapshot_of_it_comes(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting an image and importing a snapshot that needs it at once: one of the two waits."""
    kernel = (await manager.create(name="web"))["kernel"]["id"]
    await take(manager, name="base")
    archive = await exported(manager)
    await manager.http.delete("/v1/snapshots/base?wait=deleted")
    await manager.http.delete("/v1/vms/web?wait=deleted")
    db, gone, admit = manager.runtime.db, list[int](), quotas.admit

    async def remove() -> None:
        gone.append((await manager.http.delete(f"/v1/images/{kernel}")).status_code)

    async def removed_or_waits() -> bool | None:
        if gone:
            return True
        if db.is_sqlite:
            return db._turn.statistics().tasks_waiting > 0 or None
        async with db.read() as session:
            return bool(await session.scalar(text(WAITING))) or None

    async with anyio.create_task_group() as tasks:

        async def meanwhile(*given: Any) -> None:
            tasks.start_soon(remove)
            await until("the image is gone, or stays for now", removed_or_waits)
            await admit(*given)

        monkeypatch.setattr(quotas, "admit", meanwhile)
        assert (await send(manager, archive)).status_code == 201
    assert gone == [409]


WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


BAD: dict[str, dict[str, Any]] = {
    "another format": {"format": 2},
    "a name that is none": {"name": "../x"},
    "no VM": {"blueprint": {"vcpu": 0}},
    "more than a VM has": {"blueprint": {"mem_mib": 1 << 40}},
    "tags that are none": {"blueprint": {"tags": {"a b": "c"}}},
    "a strange key": {"blueprint": {"strange": 1}},
    "two machines": {"blueprint": {"mem_mib": 512}},
}


async def test_what_is_no_archive(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web")
    base = await take(manager, name="base")
    archive = await exported(manager)
    changed = [with_manifest(archive, **{"name": "bad"} | changes) for changes in BAD.values()]
    renamed = with_manifest(archive, name="bad")
    for content in (*changed, b"", b"noise" * 1000, renamed[:2000], renamed + b"more"):
        answer = await send(manager, content)
        assert (answer.status_code, answer.json()["error"]) == (422, "validation_failed")
        assert answer.json()["suggestion"]
    json_sent = await manager.http.post("/v1/snapshots/import", json={})
    assert json_sent.status_code == 415
    elsewhere = await send(manager, renamed, "?host=nowhere")
    assert elsewhere.status_code == 404
    other_engine = await send(manager, with_manifest(archive, name="bad", engine="qemu"))
    assert (other_engine.status_code, other_engine.json()["error"]) == (409, "invalid_state")
    keyed = await manager.http.post(
        "/v1/snapshots/import", content=bytes(3 << 20), headers={**OCTETS, "idempotency-key": "k"}
    )
    assert keyed.status_code == 413, "a key would have to hold all of it"

    async def nothing_left() -> bool:
        return await names(manager) == ["base"] and agent.shelf.held.keys() == {base["id"]}

    await until("nothing is left of them", nothing_left)


async def test_what_is_refused(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web")
    await take(manager, name="base")
    archive = with_manifest(await exported(manager), name="bad")
    body = {"error": "no_capacity", "message": "the disk is full", "status": 409, "request_id": "r"}
    agent.shelf.faults.append(lambda: JSONResponse(body, 409))
    answer = await send(manager, archive)
    assert (answer.status_code, answer.json()["error"]) == (409, "no_capacity")

    assert await names(manager) == ["base"], "its row is gone with the answer"
    # A host that does not even answer to that is asked again in the background.
    agent.shelf.faults += [lambda: JSONResponse(body, 409), refusing()]
    assert (await send(manager, archive)).status_code == 409

    async def it_is_gone() -> bool:
        return await names(manager) == ["base"]

    await until("its row is gone", it_is_gone)

    archive = with_manifest(await exported(manager), name="bad")
    async with manager.runtime.db.write() as session:
        for kernel in await session.scalars(select(ImageRow).where(ImageRow.kind == "kernel")):
            kernel.sha256 = "f" * 64
    answer = await send(manager, archive)
    assert (answer.status_code, answer.json()["error"]) == (409, "image_not_ready")
    assert "debian-cloud" in answer.json()["message"]
    assert "nexus image upload" in answer.json()["suggestion"]
