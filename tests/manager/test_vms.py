"""VMs through the API, on SQLite and on PostgreSQL, with an agent double."""

import anyio
import pytest
from sqlalchemy import update

from nexus.api.vms import VmError
from nexus.manager.db.network_tables import NetworkRow
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, until

pytestmark = pytest.mark.anyio


async def test_a_whole_life(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="one", mem_mib=64)
    assert (vm["state"], vm["boot"], vm["pid"], vm["nics"][0]["tap"]) == (
        "running",
        1,
        4242,
        "tap0",
    )
    assert [vm[kind]["name"] for kind in ("kernel", "initrd", "rootfs")] == [
        "debian-cloud",
        "debian-cloud",
        "busybox",
    ]
    for action, state in (
        ("pause", "paused"),
        ("resume", "running"),
        ("stop", "stopped"),
        ("start", "running"),
    ):
        answer = await manager.http.post(f"/v1/vms/one/{action}?wait={state}")
        assert (answer.status_code, answer.json()) == (200, {"ok": True}), answer.text
        assert (await manager.vm(vm["id"]))["state"] == state
    assert await manager.reasons("one") == [
        *("created", "configured", "started", "paused", "resumed"),
        *("stop_requested", "stopped", "start_requested", "started"),
    ]
    assert agent.boots[vm["id"]] == {1, 2}
    answer = await manager.http.delete("/v1/vms/one?wait=deleted")
    assert answer.json() == {"ok": True}
    assert (await manager.http.get(f"/v1/vms/{vm['id']}")).status_code == 404
    assert not agent.machines


async def test_prepared_and_started_later(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create("?wait=configured", name="later", start=False)
    assert (vm["state"], vm["boot"]) == ("configured", 0)
    assert (await manager.http.post("/v1/vms/later/start?wait=running")).status_code == 200
    assert (await manager.vm("later"))["boot"] == 1
    refused = await manager.http.post("/v1/vms/later/resume")
    assert refused.status_code == 200  # running is what resume asks for


async def test_what_a_state_does_not_allow_says_what_to_do(manager: Manager) -> None:
    await manager.create("?wait=configured", name="idle", start=False)
    answer = await manager.http.post("/v1/vms/idle/pause")
    assert answer.status_code == 409
    assert answer.json()["error"] == "invalid_state"
    assert answer.json()["suggestion"] == "nexus start idle"


async def test_names_are_unique_until_deletion(manager: Manager) -> None:
    first = await manager.create(name="same")
    answer = await manager.http.post("/v1/vms", json={"name": "same"})
    assert (answer.status_code, answer.json()["error"]) == (409, "name_taken")
    await manager.http.delete("/v1/vms/same")
    again = await manager.create(name="same")
    assert again["id"] != first["id"]


async def test_forty_at_once_get_forty_addresses(manager: Manager) -> None:
    vms = []

    async def make() -> None:
        vms.append(await manager.create())

    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(make)
    assert len({vm["nics"][0]["ip"] for vm in vms}) == 40
    assert len({vm["nics"][0]["mac"] for vm in vms}) == 40
    assert len({vm["name"] for vm in vms}) == 40


async def test_lists_in_pages(manager: Manager) -> None:
    made = [(await manager.create("", name=f"page-{n}", start=False))["id"] for n in range(5)]
    await manager.create("", name="other", start=False)
    seen: list[str] = []
    cursor = ""
    while True:
        query = f"/v1/vms?limit=2&name=page-{cursor}"
        page = (await manager.http.get(query)).json()
        seen += [vm["id"] for vm in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == made
    for vm_id in made:
        await manager.becomes(vm_id, "configured")
    configured = (await manager.http.get("/v1/vms?state=configured")).json()["items"]
    assert {vm["id"] for vm in configured} >= set(made)


async def test_missing_images_name_the_command(manager: Manager) -> None:
    answer = await manager.http.post("/v1/vms", json={"kernel": "nope"})
    assert (answer.status_code, answer.json()["error"]) == (409, "image_not_ready")
    assert "nope" in answer.json()["message"]


async def test_a_kernel_of_ones_own_needs_no_disk(manager: Manager) -> None:
    kernel_id = await manager.add_image("kernel", "tiny")
    vm = await manager.create(kernel=kernel_id)
    assert (vm["kernel"]["name"], vm["initrd"], vm["rootfs"]) == ("tiny", None, None)
    by_id = await manager.create(kernel=(await manager.create())["kernel"]["id"])
    assert by_id["initrd"]["name"] == "debian-cloud"


async def test_too_large_is_refused_without_a_row(manager: Manager) -> None:
    answer = await manager.http.post("/v1/vms", json={"name": "huge", "mem_mib": 1048576})
    assert (answer.status_code, answer.json()["error"]) == (409, "no_capacity")
    assert (await manager.http.get("/v1/vms/huge")).status_code == 404


async def test_a_boot_that_fails_is_an_error_with_its_reason(
    manager: Manager, agent: AgentDouble
) -> None:
    agent.fails_with = VmError(stage="boot", message="no kernel", suggestion="another kernel")
    vm = await manager.create(name="bad")
    assert (vm["state"], vm["error"]["stage"]) == ("error", "boot")
    answer = await manager.http.post("/v1/vms/bad/start?wait=running")
    assert (answer.status_code, answer.json()["suggestion"]) == (409, "another kernel")
    agent.fails_with = None
    assert (await manager.http.post("/v1/vms/bad/start?wait=running")).status_code == 200
    assert (await manager.vm("bad"))["error"] is None


async def test_a_wait_that_is_too_short_undoes_nothing(
    manager: Manager, agent: AgentDouble
) -> None:
    agent.hold = anyio.Event()
    answer = await manager.http.post("/v1/vms?wait=running&timeout_s=0.05", json={"name": "slow"})
    assert (answer.status_code, answer.json()["error"]) == (504, "timed_out")
    assert (await manager.vm("slow"))["id"] in answer.json()["message"]
    agent.hold.set()
    await manager.becomes("slow", "running")


async def test_a_wait_has_a_timeout_under_two_names(manager: Manager, agent: AgentDouble) -> None:
    await manager.create(name="held")
    agent.hold = anyio.Event()
    for query in ("timeout=0.05", "timeout_s=0.05", "timeout=0.05&timeout_s=600"):
        answer = await manager.http.post(f"/v1/vms/held/pause?wait=paused&{query}")
        assert (answer.status_code, answer.json()["error"]) == (504, "timed_out")
    agent.hold.set()


async def test_delete_breaks_off_what_was_wanted_before(
    manager: Manager, agent: AgentDouble
) -> None:
    agent.hold = anyio.Event()
    vm = await manager.create("", name="never")
    answer = await manager.http.delete("/v1/vms/never?wait=deleted&timeout_s=10")
    assert answer.json() == {"ok": True}
    assert agent.deletes == [vm["id"]]


async def test_logs_come_from_the_host(manager: Manager) -> None:
    await manager.create(name="talks")
    chunk = (await manager.http.get("/v1/vms/talks/logs?source=console&tail=2")).json()["item"]
    assert chunk == {"source": "console", "lines": ["line 3", "line 4"], "offset": 35}
    followed = await manager.http.get("/v1/vms/talks/logs?tail=1&follow=true")
    assert followed.headers["content-type"].startswith("text/plain")
    assert followed.text == "line 4\nmore from 35\n"


async def test_hosts_and_readiness(manager: Manager, agent: AgentDouble) -> None:
    (host,) = (await manager.http.get("/v1/hosts")).json()["items"]
    assert (host["id"], host["state"], host["engine"]) == (agent.host_id, "healthy", "firecracker")
    again = (await manager.http.get(f"/v1/hosts/{host['id']}")).json()["item"]
    # Lists do not tell of use; heartbeats come when they come.
    moving = {"use": None, "last_seen_at": None}
    assert again | moving == host | moving
    assert (await manager.http.get("/healthz")).json() == {"ok": True}


async def test_the_vmms_own_api(manager: Manager, agent: AgentDouble) -> None:
    vm = await manager.create(name="raw")
    url = "/v1/vms/raw/firecracker"
    assert (await manager.http.get(f"{url}/vm/config")).json() == {"ok": "vm/config"}
    body = {"rx_rate_limiter": {}}
    assert (
        await manager.http.patch(f"{url}/network-interfaces/eth0", json=body)
    ).status_code == 204
    assert [call[:3] for call in agent.proxied] == [
        (vm["id"], "GET", "vm/config"),
        (vm["id"], "PATCH", "network-interfaces/eth0"),
    ]
    refused = await manager.http.patch(f"{url}/balloon", json={"amount_mib": 1})
    assert (refused.status_code, refused.json()["fault_message"]) == (400, "no balloon")
    for trick in ("%2e%2e/vm", "vm%3fsock=x", "vm/../../x", "vm%00", "a//b"):
        assert (await manager.http.get(f"{url}/{trick}")).status_code in (400, 404)
    assert len(agent.proxied) == 2


async def test_every_change_leaves_an_audit_row(manager: Manager) -> None:
    from sqlalchemy import select

    from nexus.manager.db.journal_tables import AuditRow

    await manager.create(name="seen")
    await manager.http.post("/v1/vms/seen/pause?wait=paused")
    await manager.http.post("/v1/vms/nobody/pause")
    async with manager.runtime.db.read() as session:
        rows = (await session.scalars(select(AuditRow).order_by(AuditRow.id))).all()
    calls = [(row.actor, row.action, row.result) for row in rows if row.actor != "system"]
    assert calls == [
        ("admin", "vm.create", "ok"),
        ("admin", "vm.pause", "ok"),
        ("admin", "vm.pause", "not_found"),
    ]


async def test_an_exhausted_pool_says_so(manager: Manager, agent: AgentDouble) -> None:
    async with manager.runtime.db.write() as session:
        await session.execute(
            update(NetworkRow)
            .where(NetworkRow.host_id == agent.host_id)
            .values(cidr="10.99.0.0/29", gateway="10.99.0.1")
        )
    for _ in range(5):
        await manager.create()
    answer = await manager.http.post("/v1/vms", json={})
    assert (answer.status_code, answer.json()["error"]) == (409, "address_pool_exhausted")
    await manager.http.delete(
        f"/v1/vms/{(await manager.http.get('/v1/vms')).json()['items'][0]['id']}?wait=deleted"
    )
    await until("an address again", lambda: _created(manager))


async def _created(manager: Manager) -> bool:
    return (await manager.http.post("/v1/vms", json={})).status_code == 201
