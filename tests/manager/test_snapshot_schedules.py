"""Snapshots that are taken by themselves, and how many of them are kept."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from nexus.manager.db.snapshot_tables import SnapshotScheduleRow
from nexus.manager.services.snapshot_schedules import following
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, until
from tests.manager.test_snapshots import names, refused, take

URL = "/v1/vms/web/snapshot-schedule"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(every_s=st.integers(60, 10**7), late_s=st.integers(-(10**6), 10**9))
def test_what_was_missed_is_not_made_up_for(every_s: int, late_s: int) -> None:
    now = NOW + timedelta(seconds=late_s)
    found = following(NOW, every_s, now)
    assert found > now
    assert (found - NOW).total_seconds() % every_s == 0
    assert found - max(now, NOW) <= timedelta(seconds=every_s)


async def due_now(manager: Manager) -> None:
    """As if the interval had passed."""
    async with manager.runtime.db.write() as session:
        await session.execute(update(SnapshotScheduleRow).values(next_at=datetime.now(UTC)))
    manager.runtime.schedule_pipeline.hint()


async def ready(manager: Manager, scheduled: int) -> list[str]:
    """The names of those that are ready, once so many of them are the schedule's."""

    async def look() -> list[str] | None:
        items = (await manager.http.get("/v1/snapshots")).json()["items"]
        settled = all(item["state"] == "ready" for item in items)
        of_schedule = [item["name"] for item in items if item["scheduled"]]
        return of_schedule if settled and len(of_schedule) == scheduled else None

    return await until(f"{scheduled} are ready", look)


@pytest.mark.anyio
async def test_taken_and_pruned(manager: Manager, agent: AgentDouble) -> None:
    await manager.create(name="web")
    assert (await refused(manager, "GET", URL))[0] == 404
    put = await manager.http.put(URL, json={"every": 3600, "keep": 2})
    assert put.status_code == 200, put.text
    first = put.json()["item"]
    again = (await manager.http.put(URL, json={"every": 3600, "keep": 2})).json()["item"]
    assert (again["next_at"], again["keep"]) == (first["next_at"], 2)
    for wrong in ({"every": 1, "keep": 2}, {"every": 3600, "keep": 0}, {"every": 3600}):
        assert (await manager.http.put(URL, json=wrong)).status_code == 422
    await take(manager, name="mine")

    seen: list[str] = []
    for number in (1, 2, 2):
        await due_now(manager)

        async def a_new_one(before: int = len(agent.shelf.captures)) -> bool:
            return len(agent.shelf.captures) > before

        await until("one more is taken", a_new_one)
        seen += [name for name in await ready(manager, number) if name not in seen]
    assert len(seen) == 3
    assert await ready(manager, 2) == seen[1:], "the oldest went"
    assert "mine" in await names(manager), "it prunes only its own"

    await manager.http.put(URL, json={"every": 3600, "keep": 1})
    assert await ready(manager, 1) == seen[2:]
    assert (await manager.http.delete(URL)).json() == {"ok": True}
    assert (await manager.http.delete(URL)).status_code == 404
    assert await names(manager) == ["mine", seen[2]]


@pytest.mark.anyio
async def test_why_one_was_not_taken(sqlite_manager: Manager, agent: AgentDouble) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    await manager.create(name="web")
    await manager.http.put(URL, json={"every": 60, "keep": 1})
    await manager.http.post("/v1/vms/web/stop?wait=stopped")
    await due_now(manager)

    async def noted() -> str | None:
        item = (await manager.http.get(URL)).json()["item"]
        said: str | None = item["last_error"]
        return said

    assert "stopped" in (await until("it is noted", noted))
    assert agent.shelf.captures == []
    await manager.http.post("/v1/vms/web/start?wait=running")
    await due_now(manager)
    await ready(manager, 1)
    assert await noted() is None
    await manager.http.delete("/v1/vms/web?wait=deleted")
    assert len(await names(manager)) == 1, "what it took stays when its VM goes"
