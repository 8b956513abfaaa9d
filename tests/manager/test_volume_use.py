"""Volumes of VMs that are there: attached, detached, grown, renamed, copied."""

from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from httpx import Response
from sqlalchemy import event

from nexus.api.errors import Conflict
from nexus.manager import devices, lifecycle
from nexus.manager.db.columns import StoredDrive
from tests.manager.agent_double import AgentDouble, refusing
from tests.manager.core import Manager, until
from tests.manager.test_volumes import ON_DATA, make, state

pytestmark = pytest.mark.anyio


async def do(manager: Manager, what: str, query: str = "?wait=applied", **body: Any) -> Response:
    return await manager.http.post(f"/v1/volumes/data/{what}{query}", json=body)


async def refusal(manager: Manager, what: str, **body: Any) -> tuple[str, str]:
    answer = await do(manager, what, **body)
    assert (answer.status_code, bool(answer.json()["suggestion"])) == (409, True), answer.text
    return answer.json()["error"], answer.json()["message"]


def volumes_of(agent: AgentDouble, vm: dict[str, Any]) -> list[tuple[str, str | None, bool]]:
    drives = agent.machines[vm["id"]].drives
    return [(drive.name, drive.volume, drive.read_only) for drive in drives]


async def test_attached_to_a_vm_at_rest_and_detached(manager: Manager, agent: AgentDouble) -> None:
    volume = await make(manager)
    vm = await manager.create("?wait=configured", name="one", start=False)
    attached = (await do(manager, "attach", vm="one", read_only=True)).json()["item"]
    assert (attached["state"], attached["vm_name"], attached["drive"]) == (
        "attached",
        "one",
        "data",
    )
    assert volumes_of(agent, vm) == [("data", volume["id"], True)]
    assert agent.statuses[vm["id"]].state == "configured"
    assert (await do(manager, "attach", vm="one", read_only=True)).status_code == 200
    assert (await refusal(manager, "attach", vm="one", name="other"))[0] == "in_use"
    await manager.create(name="two")
    assert (await refusal(manager, "attach", vm="two"))[0] == "in_use"

    detached = (await do(manager, "detach")).json()["item"]
    assert (detached["state"], detached["vm_id"], detached["drive"]) == ("free", None, None)
    assert volumes_of(agent, vm) == []
    assert (await do(manager, "detach")).status_code == 200
    reasons = await manager.reasons("one")
    assert [r for r in reasons if r.startswith("volume")] == ["volume_attached", "volume_detached"]
    assert (await manager.http.delete("/v1/volumes/data")).status_code == 200


async def test_a_vm_that_runs_has_to_be_rebooted(manager: Manager, agent: AgentDouble) -> None:
    volume = await make(manager)
    vm = await manager.create(name="one")
    error, message = await refusal(manager, "attach", vm="one")
    assert (error, "running" in message) == ("invalid_state", True)
    assert await state(manager) == ("free", None)
    attached = await do(manager, "attach", vm="one", name="db", restart=True)
    assert (attached.status_code, attached.json()["item"]["drive"]) == (200, "db")
    assert volumes_of(agent, vm) == [("db", volume["id"], False)]
    assert (agent.boots[vm["id"]], (await manager.vm("one"))["state"]) == ({1, 2}, "running")

    assert (await refusal(manager, "detach"))[0] == "invalid_state"
    assert (await refusal(manager, "snapshot", name="copy"))[0] == "invalid_state"
    assert agent.copies == []
    agent.hold = anyio.Event()
    assert (await do(manager, "detach", "", restart=True)).json()["item"]["state"] == "detaching"
    assert (await refusal(manager, "attach", vm="one"))[0] == "invalid_state"
    taken = await manager.http.post("/v1/vms", json={"drives": ON_DATA})
    assert (taken.status_code, "letting go" in taken.json()["message"]) == (409, True)
    assert (await manager.http.delete("/v1/volumes/data")).status_code == 409
    agent.hold.set()
    agent.hold = None
    await manager.becomes("one", "running")
    assert (volumes_of(agent, vm), agent.boots[vm["id"]]) == ([], {1, 2, 3})
    # Free, although the VM it was detached from runs again.
    assert await state(manager) == ("free", None)
    assert (await do(manager, "snapshot", name="copy")).status_code == 201
    other = await manager.create(name="two", drives=ON_DATA)
    assert volumes_of(agent, other) == [("db", volume["id"], False)]
    assert await state(manager) == ("attached", "two")


async def test_a_host_that_is_away_lets_go_later(manager: Manager, agent: AgentDouble) -> None:
    await make(manager)
    await manager.create("?wait=configured", name="one", start=False, drives=ON_DATA)
    await manager.create("?wait=configured", name="two", start=False)
    agent.hold = anyio.Event()
    agent.faults.append(refusing())
    assert (await do(manager, "detach", "")).json()["item"]["state"] == "detaching"
    assert (await refusal(manager, "attach", vm="two"))[0] == "in_use"
    agent.hold.set()
    agent.hold = None
    # The same wish again waits for nothing new, and the pipeline tells the host by itself.
    assert (await do(manager, "detach")).status_code == 200

    async def is_free() -> bool:
        return await state(manager) == ("free", None)

    await until("the host has let go of it", is_free)
    await manager.http.delete("/v1/vms/one?wait=deleted")
    assert await state(manager) == ("free", None)


async def test_what_cannot_be_attached(sqlite_manager: Manager) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await make(manager)
    small = [{"name": f"d{number}", "size_mib": 1} for number in range(7)]
    drives = [{"name": "data", "size_mib": 1}, *small]
    await manager.create("?wait=configured", name="full", start=False, drives=drives)
    await manager.create("?wait=configured", name="named", start=False, drives=drives[:1])
    assert "named data already" in (await refusal(manager, "attach", vm="named"))[1]
    assert "as many devices" in (await refusal(manager, "attach", vm="full", name="z"))[1]
    assert (await do(manager, "attach", vm="nobody")).status_code == 404
    assert (await do(manager, "attach", vm="named", name="rootfs")).status_code == 422
    huge = {"name": "root", "size_mib": 10**6 - 10}
    await manager.create("?wait=configured", name="huge", start=False, drives=[huge])
    assert (await refusal(manager, "attach", vm="huge"))[0] == "no_capacity"
    changed = {"if-match": '"stale"'}
    for what, body in (("attach", {"vm": "named", "name": "x"}), ("detach", {})):
        url = f"/v1/volumes/data/{what}"
        answer = await manager.http.post(url, json=body, headers=changed)
        assert answer.status_code == 412
    assert await state(manager) == ("free", None)


async def test_grown_and_renamed(manager: Manager, agent: AgentDouble) -> None:
    await make(manager)
    vm = await manager.create(name="one", drives=ON_DATA)
    url = "/v1/volumes/data?wait=applied"
    grown = await manager.http.patch(url, json={"size_mib": 128, "name": "data"})
    assert grown.json()["item"]["size_mib"] == 128
    assert agent.machines[vm["id"]].drives[0].size_mib == 128
    for body, status in (
        ({"size_mib": 64}, 409),
        ({"size_mib": 10**7}, 409),
        ({}, 422),
        ({"name": "../x"}, 422),
        ({"size_mib": None}, 422),
    ):
        assert (await manager.http.patch(url, json=body)).status_code == status
    puts = len(agent.puts)
    await make(manager, "other", 8)
    taken = await manager.http.patch(url, json={"name": "other"})
    assert (taken.status_code, taken.json()["error"]) == (409, "name_taken")
    etag = (await manager.http.get("/v1/volumes/data")).headers["etag"]
    answers = [
        await manager.http.patch(url, json={"name": "fresh"}, headers={"if-match": tag})
        for tag in ('"stale"', etag)
    ]
    assert [answer.status_code for answer in answers] == [412, 200]
    assert (await manager.vm("one"))["drives"][1]["volume"]["name"] == "fresh"
    assert (await manager.http.patch("/v1/volumes/other", json={"size_mib": 9})).status_code == 200
    assert len(agent.puts) == puts
    assert "drive_changed" in await manager.reasons("one")


async def test_snapshots(manager: Manager, agent: AgentDouble) -> None:
    volume = await make(manager)
    agent.faults.append(refusing())
    cut = await do(manager, "snapshot", name="copy")
    assert (cut.status_code, await state(manager, "copy")) == (502, ("copying", None))
    taken = await manager.http.post("/v1/vms", json={"drives": [{"name": "a", "volume": "copy"}]})
    assert (taken.status_code, "not copied whole" in taken.json()["message"]) == (409, True)
    in_use = await manager.http.delete("/v1/volumes/data")
    assert (in_use.status_code, "copied to 'copy'" in in_use.json()["message"]) == (409, True)
    # The same again finishes it.
    made = await do(manager, "snapshot", name="copy")
    assert (made.status_code, made.json()["item"]["state"]) == (201, "free")
    assert made.json()["item"]["size_mib"] == 64
    assert agent.copies == [(volume["id"], made.json()["id"])]
    assert (await refusal(manager, "snapshot", name="copy"))[0] == "name_taken"
    assert (await refusal(manager, "snapshot", name="data"))[0] == "name_taken"

    # The host knows better than we that somebody has it: then there is no copy.
    vm = await manager.create("?wait=configured", name="one", start=False, drives=ON_DATA)
    agent.statuses[vm["id"]] = agent.statuses[vm["id"]].model_copy(update={"state": "running"})
    assert (await refusal(manager, "snapshot", name="third"))[0] == "in_use"
    assert (await manager.http.get("/v1/volumes/third")).status_code == 404
    # One that is not whole can be given up.
    agent.statuses[vm["id"]] = agent.statuses[vm["id"]].model_copy(update={"state": "configured"})
    agent.faults.append(refusing())
    assert (await do(manager, "snapshot", name="third")).status_code == 502
    assert (await manager.http.delete("/v1/volumes/third")).status_code == 200
    assert (await manager.http.get("/v1/volumes/third")).status_code == 404


class Cut(BaseException):
    """The manager dies here."""


DOOMED: ContextVar[list[int]] = ContextVar("doomed")
"""So many statements and commits this request has left."""


async def test_a_snapshot_cut_off_at_any_statement_is_finished_by_the_same_request(
    sqlite_manager: Manager, agent: AgentDouble
) -> None:
    manager = sqlite_manager
    await make(manager)
    engine = manager.runtime.db.engine.sync_engine

    def die(*_: object) -> None:
        left = DOOMED.get([0])
        left[0] -= 1
        if left[0] == 0:
            raise Cut

    async def snapshot(number: int) -> Response:
        return await manager.http.post(
            "/v1/volumes/data/snapshot",
            json={"name": f"copy-{number}"},
            headers={"idempotency-key": f"k{number}"},
        )

    for what in ("before_cursor_execute", "commit"):
        event.listen(engine, what, die)
    deaths = 0
    for number in range(1, 100):
        DOOMED.set(left := [number])
        try:
            await snapshot(number)
        except BaseException as error:  # also within groups
            if "Cut" not in repr(error):
                raise
            deaths += 1
        DOOMED.set([0])
        answer = await snapshot(number)
        assert answer.status_code == 201, answer.text
        assert (await state(manager, f"copy-{number}")) == ("free", None)
        copies = {copy for _, copy in agent.copies}
        assert len(copies) == number
        if left[0] > 0:
            break
    assert 10 < deaths == number - 1


async def test_from_an_image(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    body = {"name": "data", "image": "busybox"}
    made = (await manager.http.post("/v1/volumes", json=body)).json()["item"]
    assert (made["size_mib"], made["image"]["name"]) == (1, "busybox")
    larger = await manager.http.post("/v1/volumes", json={**body, "name": "b", "size_mib": 9})
    assert larger.json()["item"]["size_mib"] == 9
    unknown = await manager.http.post("/v1/volumes", json={"name": "c", "image": "nope"})
    assert (unknown.status_code, unknown.json()["error"]) == (409, "image_not_ready")
    assert (await manager.http.post("/v1/volumes", json={"name": "c"})).status_code == 422
    await manager.add_image("rootfs", "other")
    vm = await manager.create(name="one", rootfs="other", drives=ON_DATA)
    (drive,) = agent.machines[vm["id"]].drives
    assert (drive.volume, drive.blob and drive.blob.size_bytes) == (made["id"], 1)
    await manager.http.delete("/v1/vms/one?wait=deleted")
    kept = await manager.http.delete("/v1/images/busybox")
    assert (kept.status_code, "volume data" in kept.json()["message"]) == (409, True)


async def test_names_of_drives() -> None:
    names = {"data": "data", "my-data-1": "mydata1", "1st": "v1st", "config": "vconfig"}
    assert {name: devices.drive_name(name) for name in names} == names
    assert len(devices.drive_name("a" * 63)) == 16
    assert lifecycle.at_rest("error", "running", None)
    assert not lifecycle.at_rest("stopped", "running", None)
    assert not lifecycle.at_rest("unknown", "stopped", None)
    a_drive = StoredDrive(name="x", size_mib=1, image=None, read_only=False, limits=None)
    with pytest.raises(Conflict):
        devices.check_another("vm", [], 13, True, a_drive)
