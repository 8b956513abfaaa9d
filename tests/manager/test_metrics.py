"""``/metrics``: what is in it, who sees what, and what never makes a series."""

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import httpx
import pytest
import yaml
from sqlalchemy import delete, insert, select, update

from nexus.agent import counts as agent_counts
from nexus.api.errors import InvalidState
from nexus.api.hosts import Capacity
from nexus.ids import new_id
from nexus.manager.counts import Counts
from nexus.manager.db.tables import HostRow, RoleName, VmRow
from nexus.manager.db.template_tables import TemplateRow
from nexus.manager.pipelines import hosts
from nexus.manager.pipelines import preboots as pipeline
from nexus.metrics import exposition
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, running, served, settings_for, until
from tests.manager.scraping import scrape, token_of
from tests.manager.test_preboots import comes_to
from tests.manager.test_templates import make, use
from tests.parts import REPO
from tests.scraping import Scrape

pytestmark = pytest.mark.anyio

OF_THE_INSTALLATION = (
    "nexus_host_promised_",
    "nexus_http_",
    "nexus_vm_call",
    "nexus_snapshot_call",
    "process_",
)
WEB = {"project": "default", "template": "web"}


async def until_it_is(manager: Manager, name: str, value: float, **labels: str) -> Scrape:
    async def look() -> Scrape | None:
        seen = await scrape(manager)
        return seen if seen.value(name, **labels) == value else None

    return await until(f"{name}{labels} is {value}", look)


async def test_what_there_is_of_vms_hosts_and_snapshots(
    manager: Manager, agent: AgentDouble
) -> None:
    await manager.create(name="one", vcpu=2, mem_mib=64, rootfs_size_mib=40)
    await manager.create(name="two", mem_mib=32)
    await manager.create("?wait=configured", name="off", mem_mib=32, start=False)
    await manager.http.post("/v1/vms/one/snapshots?wait=ready", json={"name": "s"})
    seen = await scrape(manager)
    states = {
        state: seen.value("nexus_vms", project="default", state=state)
        for state in ("running", "configured", "error", "unknown")
    }
    assert states == {"running": 2, "configured": 1, "error": 0, "unknown": 0}
    assert seen.value("nexus_snapshots", project="default", state="ready") == 1
    assert seen.value("nexus_snapshots") == 1
    assert seen.value("nexus_hosts", host="double", state="healthy") == 1
    assert seen.value("nexus_hosts", host="double", state="unreachable") == 0
    of_host = {
        name: seen.value(f"nexus_host_{name}", host="double")
        for name in (
            "vcpus",
            "memory_bytes",
            "promised_vcpus",
            "promised_memory_bytes",
            "disk_bytes",
        )
    }
    assert of_host == {
        "vcpus": 2,
        "memory_bytes": 65536 << 20,
        "promised_vcpus": 4,
        "promised_memory_bytes": 128 << 20,
        "disk_bytes": 10**6 << 20,
    }
    assert seen.value("nexus_host_promised_disk_bytes") > 0
    assert seen.value("nexus_build_info") == 1
    assert seen.value("process_resident_memory_bytes") > 0


async def test_a_reader_sees_its_own_project(sqlite_manager: Manager) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="mine")
    await manager.create(name="theirs")
    await make(manager, "mine")
    await make(manager, "theirs", preboot=True, pool=3)
    async with manager.runtime.db.write() as session:
        for table in (VmRow, TemplateRow):
            await session.execute(update(table).where(table.name == "theirs").values(project="red"))
    manager.runtime.counts.taken("red", "theirs", 3)
    everything = await scrape(manager)
    assert everything.labels("project") == {"default", "red"}
    assert everything.value("nexus_pool_taken_total", project="red", template="theirs") == 3
    readers: list[tuple[str, RoleName]] = [
        *(("default", "viewer"), ("red", "admin"), ("blue", "operator"))
    ]
    for project, role in readers:
        seen = await scrape(manager, await token_of(manager, project, role))
        assert seen.labels("project") == {project}, role
        assert seen.value("nexus_vms", state="running") == (project != "blue")
        assert seen.value("nexus_pool_taken_total") == 3 * (project == "red")
        assert seen.labels("template") == ({"theirs"} if project == "red" else set())
        assert seen.labels("host") == {"double"}
        assert not [name for name in seen.families if name.startswith(OF_THE_INSTALLATION)]
    hosts_token = await token_of(manager, "default", "agent")
    headers = {"authorization": f"Bearer {hosts_token}"}
    assert (await manager.http.get("/metrics", headers=headers)).status_code == 403
    refused = await manager.http.get("/metrics", headers={"authorization": ""})
    assert (refused.status_code, refused.json()["error"]) == (401, "unauthenticated")


async def test_it_can_be_switched_off(tmp_path: Path, sqlite_url: str, agent: AgentDouble) -> None:
    settings = settings_for(tmp_path, sqlite_url, agent.url, MANAGER_ENABLE_METRICS="0")
    async with running(settings) as manager:
        answer = await manager.http.get("/metrics")
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
        assert "MANAGER_ENABLE_METRICS" in answer.json()["suggestion"]


async def test_a_pool_fills_is_taken_from_and_missed(
    sqlite_manager: Manager, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = sqlite_manager
    monkeypatch.setattr(pipeline, "POOL_LOOK_S", 0.1)
    monkeypatch.setattr(pipeline, "STEADY", timedelta(0))
    await manager.add_image("kernel", "tiny")
    await make(manager, spec={"kernel": "tiny", "mem_mib": 32}, preboot=True, pool=2)
    seen = await scrape(manager)
    assert seen.value("nexus_pool_hosts", **WEB) == 0
    assert [s.value for s in seen.families["nexus_pool_taken"].samples] == [0]
    await use(manager, name="first")
    there = {**WEB, "host": "double"}
    seen = await until_it_is(manager, "nexus_pool_ready", 2, **there)
    assert seen.value("nexus_pool_hosts", **WEB) == 1
    assert seen.value("nexus_pool_size", **there) == 2
    assert seen.value("nexus_pool_loading", **there) == 0
    assert seen.value("nexus_preboots", **there, state="ready") == 1
    assert seen.value("nexus_preboots", **there) == 1
    assert seen.value("nexus_vms") == 1, "those that wait are none of them"
    # The first one found no pool yet.
    assert seen.value("nexus_pool_missed_total", **WEB, reason="empty") == 1

    agent.hold = anyio.Event()
    taken = await manager.http.post("/v1/templates/web/instantiate", json={"count": 2})
    assert taken.status_code == 201
    seen = await until_it_is(manager, "nexus_pool_loading", 2, **there)
    assert seen.value("nexus_pool_ready", **there) == 0
    assert seen.value("nexus_pool_taken_total", **WEB) == 2
    late = await manager.http.post("/v1/templates/web/instantiate", json={"name": "late"})
    larger = await manager.http.post(
        "/v1/templates/web/instantiate", json={"name": "larger", "mem_mib": 48}
    )
    assert (late.status_code, larger.status_code) == (201, 201)
    seen = await scrape(manager)
    assert seen.value("nexus_pool_missed_total", **WEB, reason="empty") == 2
    assert seen.value("nexus_pool_missed_total", **WEB, reason="different") == 1
    agent.hold.set()
    agent.hold = None
    await until_it_is(manager, "nexus_pool_ready", 2, **there)

    await manager.http.delete("/v1/templates/web")
    seen = await until_it_is(manager, "nexus_pool_size", 0)
    assert "web" not in seen.labels("template"), "what is gone is forgotten"


async def test_a_preboot_that_failed(
    sqlite_manager: Manager, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = sqlite_manager
    monkeypatch.setattr(pipeline, "STEADY", timedelta(0))
    await manager.add_image("kernel", "tiny")
    await make(manager, spec={"kernel": "tiny", "mem_mib": 32}, preboot=True, pool=1)

    def full() -> None:
        raise InvalidState("the disk was full")

    agent.shelf.faults.append(full)
    await use(manager, name="first")
    await comes_to(manager, "failed")
    seen = await scrape(manager)
    assert seen.value("nexus_preboots", **WEB, host="double", state="failed") == 1
    assert seen.value("nexus_preboots", **WEB) == 1
    assert seen.value("nexus_pool_size", **WEB) == 1
    assert seen.value("nexus_pool_ready", **WEB) == 0
    assert seen.value("nexus_reconciler_actions_total", action="preboot_failed") == 1
    assert seen.value("nexus_snapshots") == 0


async def test_what_pipelines_do_is_counted(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    calls = "nexus_vm_call_duration_seconds_count"

    def refuse() -> None:
        raise InvalidState("not now")

    await manager.create(name="one")
    seen = await scrape(manager)
    assert seen.value(calls, power="running", outcome="done") == 1
    agent.faults.append(refuse)
    await manager.http.post("/v1/vms?wait=running", json={"name": "two"})
    seen = await until_it_is(manager, calls, 1, power="running", outcome="refused")
    assert seen.value("nexus_vm_call_duration_seconds_sum", outcome="refused") < 5

    agent.hold = anyio.Event()
    await manager.http.post("/v1/vms", json={"name": "three"})
    await manager.http.delete("/v1/vms/three?wait=deleted")
    agent.hold.set()
    agent.hold = None
    seen = await until_it_is(manager, calls, 1, power="running", outcome="broken_off")
    await until_it_is(manager, calls, 1, power="deleted", outcome="done")
    await manager.http.post("/v1/vms/one/snapshots?wait=ready", json={"name": "s"})
    await until_it_is(
        manager, "nexus_snapshot_call_duration_seconds_count", 1, action="capture", outcome="done"
    )


async def test_http_is_measured_by_route_and_not_by_what_is_sent(
    sqlite_manager: Manager,
) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="one")
    await scrape(manager)
    before = (await scrape(manager)).labels("route")
    assert {"/v1/vms", "/readyz", "/metrics"} <= before

    for number in range(3):
        await manager.http.get(f"/v1/vms/{new_id()}")
        await manager.http.get(f"/nowhere/{number}")
        await manager.http.request(f"BREW{number}", f"/v1/vms/{number}")
        await manager.http.request(f"BREW{number}", f"/{number}")
        await manager.http.get(f"/v1/vms/{number}", headers={"authorization": "Bearer x"})
        await manager.http.get(f"/%ff{number}")
    key = {"idempotency-key": "k"}
    await manager.http.post("/v1/vms", json={"name": "keyed"}, headers=key)
    seen = await scrape(manager)
    count = "nexus_http_request_duration_seconds_count"
    assert seen.labels("route") - before == {"/v1/vms/{ref}", "other"}
    assert seen.labels("method") == {"GET", "POST", "other"}
    assert seen.value(count, method="GET", route="/v1/vms/{ref}", status="404") == 3
    assert seen.value(count, method="other", route="/v1/vms/{ref}", status="405") == 3
    assert seen.value(count, method="GET", route="other", status="401") == 3
    assert seen.value(count, method="GET", route="other", status="400") == 3
    assert seen.value(count, method="GET", route="other", status="404") == 3
    assert seen.value(count, method="POST", route="/v1/vms", status="201") == 2
    assert seen.value("nexus_http_open", protocol="http") == 1, "this very scrape"


async def test_a_stream_counts_when_it_begins(sqlite_manager: Manager) -> None:
    """However long it goes on then."""
    manager = sqlite_manager
    count = "nexus_http_request_duration_seconds_count"
    headers = {"authorization": f"Bearer {manager.token}", "accept": "text/event-stream"}
    async with (
        served(manager.app) as url,
        httpx.AsyncClient(headers=headers) as http,
        http.stream("GET", f"{url}/v1/events") as stream,
    ):
        assert stream.status_code == 200
        seen = await scrape(manager)
        assert seen.value(count, route="/v1/events", status="200") == 1
        assert seen.value("nexus_http_open", protocol="http") == 2, "and this very scrape"
    seen = await until_it_is(manager, "nexus_http_open", 1, protocol="http")
    assert seen.value(count, route="/v1/events") == 1


async def test_what_nobody_asked_for_is_counted(
    tmp_path: Path, sqlite_url: str, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "ORPHAN_GRACE_S", 0.05)
    async with running(settings_for(tmp_path, sqlite_url, agent.url)) as manager:
        await manager.add_defaults()
        lost, orphan, _ = [
            await manager.create("?wait=configured", name=name, start=False)
            for name in ("lost", "orphan", "over")
        ]
        async with manager.runtime.db.write() as session:
            await session.execute(delete(VmRow).where(VmRow.id == orphan["id"]))
            over = update(VmRow).where(VmRow.name == "over")
            await session.execute(over.values(expires_at=datetime.now(UTC)))
        manager.runtime.expiry.hint()
        del agent.machines[lost["id"]], agent.statuses[lost["id"]]
        agent.hang_up()  # Whoever comes back hears what there is.
        for action in ("vm_sent_again", "orphan_removed", "vm_expired"):
            await until_it_is(manager, "nexus_reconciler_actions_total", 1, action=action)


async def test_a_host_that_is_lost(
    sqlite_manager: Manager, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="one")
    follower = hosts.HostPipeline(
        manager.runtime.db,
        manager.runtime.agents,
        manager.runtime.pipeline,
        manager.runtime.network_push,
        agent.url,
    )
    monkeypatch.setattr(hosts, "UNREACHABLE_AFTER_S", 0.0)
    monkeypatch.setattr(hosts, "LOST_AFTER_S", 0.0)
    await follower._note_silence()
    seen = await scrape(manager)
    assert seen.value("nexus_reconciler_actions_total", action="host_unreachable") == 1
    assert seen.value("nexus_reconciler_actions_total", action="vm_unknown") == 1


async def test_many_vms_and_hosts_of_one_name(sqlite_manager: Manager) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="one")
    async with manager.runtime.db.write() as session:
        row = (await session.scalars(select(VmRow))).one()
        values = {c.key: getattr(row, c.key) for c in VmRow.__table__.columns}
        many = [{**values, "id": new_id(), "name": f"vm-{n}"} for n in range(999)]
        await session.execute(insert(VmRow), many)
    took: list[float] = []
    for _ in range(10):
        begun = time.perf_counter()
        seen = await scrape(manager)
        took.append(time.perf_counter() - begun)
    assert seen.value("nexus_vms") == 1000
    # Less than 20 ms where nothing else runs; a busy machine must not fail it.
    assert min(took) < 0.1

    # Two hosts of one name are told apart.
    async with manager.runtime.db.write() as session:
        host = (await session.scalars(select(HostRow))).one()
        values = {c.key: getattr(host, c.key) for c in HostRow.__table__.columns}
        await session.execute(insert(HostRow).values({**values, "id": new_id()}))
    names = (await scrape(manager)).labels("host")
    assert len(names) == 2
    assert all(re.fullmatch("double-[0-9a-f]{12}", name) for name in names)


def test_apps_of_one_process_count_each_for_itself() -> None:
    one, other = Counts(), Counts()
    one.acted("vm_expired", 7)
    families = {family.name: family for family in other.registry.collect()}
    assert not any(sample.value for sample in families["nexus_reconciler_actions"].samples)


async def test_the_page_names_all_families_and_no_other(sqlite_manager: Manager) -> None:
    """docs/metrics.md, whose alerts would else be about nothing."""
    page = (REPO / "docs" / "metrics.md").read_text()
    named = re.findall(r"\bnexus_\w+", page)
    host = Capacity(
        vcpus=1, mem_mib=1, mem_available_mib=1, disk_mib=1, disk_available_mib=1, vms=0
    )
    of_agent = await exposition(agent_counts.Counts().families([], host))
    families = [
        *(await scrape(sqlite_manager)).families.values(),
        *Scrape(bytes(of_agent.body).decode()).families.values(),
    ]
    served = {
        family.name + "_total" * (family.type == "counter")
        for family in families
        if not family.name.startswith("process_")
    }
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in named} == served
    scraping, waking = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(scraping)["scrape_configs"][0]["authorization"]
    assert all(rule["expr"] for rule in yaml.safe_load(waking)["groups"][0]["rules"])
