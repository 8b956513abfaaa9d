"""The manager's way to a VM's own API: audited, bounded, and what it changes is not fought."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from sqlalchemy import select

from nexus.api.machines import VMM_BODY_BYTES
from nexus.httpd import REST_BYTES
from nexus.manager.db.journal_tables import AuditRow
from nexus.manager.db.tables import VmRow
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, until

pytestmark = pytest.mark.anyio


async def audit(manager: Manager) -> list[AuditRow]:
    async with manager.runtime.db.read() as session:
        query = select(AuditRow).where(AuditRow.action == "vm.firecracker").order_by(AuditRow.id)
        return list(await session.scalars(query))


async def settled(manager: Manager, vm_id: str) -> VmRow:
    async def look() -> VmRow | None:
        async with manager.runtime.db.read() as session:
            row = await session.get(VmRow, vm_id)
        return row if row is not None and not row.unsettled else None

    return await until("it is settled", look)


async def test_a_pause_past_us_is_wanted_and_names_who_did_it(
    manager: Manager, agent: AgentDouble
) -> None:
    vm = await manager.create(name="web")
    url = "/v1/vms/web/firecracker/vm"
    for state, shown in (("Paused", "paused"), ("Resumed", "running"), ("Paused", "paused")):
        answer = await manager.http.patch(url, json={"state": state})
        assert answer.status_code == 204, answer.text
        assert (await manager.vm("web"))["state"] == shown
        row = await settled(manager, vm["id"])
        assert (row.power, row.wanted_by) == (shown, "admin")
        assert agent.machines[vm["id"]].power == shown
        events = (await manager.http.get("/v1/vms/web/events")).json()["items"]
        assert (events[-1]["state"], events[-1]["actor"]) == (shown, "admin")
    assert agent.boots[vm["id"]] == {1}
    # What is changed next of the VM is sent with the pause, not against it.
    row = await settled(manager, vm["id"])
    assert (await manager.http.post("/v1/vms/web/resume?wait=running")).status_code == 200
    assert agent.machines[vm["id"]].generation == row.generation + 1


async def test_a_pause_by_nobody_we_know_is_not_fought_either(
    manager: Manager, agent: AgentDouble
) -> None:
    vm = await manager.create(name="web")
    status = agent.push(vm["id"], state="paused")
    await manager.becomes("web", "paused")
    row = await settled(manager, vm["id"])
    assert (row.power, row.wanted_by) == ("paused", "system")
    # A line that comes twice, or late, changes nothing.
    agent.repeat(vm["id"], status)
    agent.push(vm["id"], state="running", observed_at=datetime.now(UTC) - timedelta(hours=1))
    assert (await settled(manager, vm["id"])).power == "paused"
    reasons = await manager.reasons("web")
    assert reasons.count("paused") == 1


async def test_the_audit_is_pending_while_it_is_done(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="web")
    agent.hold_proxy = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            lambda: manager.http.put("/v1/vms/web/firecracker/actions", json={"action_type": "x"})
        )

        async def asked() -> bool:
            return bool(agent.proxied)

        await until("the agent is asked", asked)
        (row,) = await audit(manager)
        assert (row.result, row.finished_at, row.target) == ("pending", None, vm["id"])
        assert row.before == {"method": "PUT", "path": "actions"}
        agent.hold_proxy.set()
    (row,) = await audit(manager)
    assert (row.result, row.after) == ("ok", {"status": 204})
    assert row.finished_at is not None


async def test_refusals_and_broken_off_calls_are_audited_as_such(
    manager: Manager, agent: AgentDouble
) -> None:
    await manager.create(name="web")
    url = "/v1/vms/web/firecracker"
    assert (await manager.http.patch(f"{url}/balloon", json={})).status_code == 400
    assert (await manager.http.patch(f"{url}/a.b", json={})).status_code == 404
    agent.hold_proxy = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: manager.http.put(f"{url}/actions", json={}))

        async def asked() -> bool:
            return bool(agent.proxied)

        await until("the agent is asked", asked)
        tasks.cancel_scope.cancel()
    agent.hold_proxy.set()
    results = [row.result for row in await audit(manager)]
    assert results == ["vmm_fault", "not_found", "client_closed_request"]


async def test_reads_are_not_audited(manager: Manager) -> None:
    await manager.create(name="web")
    assert (await manager.http.get("/v1/vms/web/firecracker/vm/config")).status_code == 200
    assert await audit(manager) == []


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream"])
async def test_large_bodies_are_refused_before_they_are_held(
    manager: Manager, agent: AgentDouble, kind: str
) -> None:
    await manager.create(name="web")
    url, headers = "/v1/vms/web/firecracker/mmds", {"content-type": kind}
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 1
            yield b" " * 4096

    announced = await manager.http.put(
        url, content=endless(), headers={**headers, "content-length": "99999999"}
    )
    assert (announced.status_code, announced.json()["error"]) == (413, "payload_too_large")
    assert sent <= 1
    sent = 0
    streamed = await manager.http.put(url, content=endless(), headers=headers)
    assert (streamed.status_code, streamed.json()["error"]) == (413, "payload_too_large")
    assert sent <= (VMM_BODY_BYTES + REST_BYTES) // 4096 + 2
    fits = b'{"x": "' + b"y" * (VMM_BODY_BYTES - 9) + b'"}'
    assert (await manager.http.put(url, content=fits, headers=headers)).status_code == 204
    assert len(agent.proxied) == 1
