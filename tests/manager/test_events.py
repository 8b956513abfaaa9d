"""Events as pages and as a stream: every change once, in one order, whatever breaks in between."""

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from sqlalchemy import update

from nexus.manager import feed, uow
from nexus.manager.config import BadSetting, Settings
from nexus.manager.db.journal_tables import EventHorizonRow
from nexus.manager.db.session import Database
from nexus.manager.db.tables import TokenRow, VmRow
from nexus.manager.services import events
from tests.manager.core import Manager, running, until
from tests.manager.rows import host_row, image_row, vm_row
from tests.manager.streams import Stream, streaming

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)


def open_stream(
    manager: Manager, query: str = "", last: int | None = None, path: str = "/v1/events"
) -> contextlib.AbstractAsyncContextManager[Stream]:
    return streaming(manager.app, manager.token, path, query, last)


async def listed(manager: Manager, query: str = "", path: str = "/v1/events") -> list[Any]:
    """All pages."""
    found: list[Any] = []
    cursor = ""
    while True:
        answer = await manager.http.get(f"{path}?limit=3{query}{cursor}")
        assert answer.status_code == 200, answer.text
        found += answer.json()["items"]
        if answer.json()["next_cursor"] is None:
            return found
        cursor = f"&cursor={answer.json()['next_cursor']}"


async def write(db: Database, vm: VmRow, count: int, *, days_ago: float = 0.0) -> None:
    at = datetime.now(UTC) - days_ago * DAY
    async with db.write() as session:
        for number in range(count):
            session.add(uow.vm_event(uow.SYSTEM, vm, at, "running", f"r{number}", "m"))


def some_vm(name: str = "old") -> VmRow:
    return vm_row(name, host_row(), image_row("kernel"))


async def test_a_stream_tells_every_change_once_and_in_order(manager: Manager) -> None:
    async with open_stream(manager) as stream:
        assert stream.status == 200
        vm = await manager.create(name="web")
        await manager.http.post("/v1/vms/web/pause?wait=paused")
        await manager.http.delete("/v1/vms/web?wait=deleted")
        told = await stream.until("deleted")
    assert [message.data for message in told] == await listed(manager)
    assert [message.id for message in told] == [message.data["id"] for message in told]
    assert {message.event for message in told} == {"vm"}
    reasons = [message.data["reason"] for message in told]
    assert reasons[:3] == ["created", "configured", "started"]
    assert {"paused", "delete_requested"} <= set(reasons)
    assert {message.data["vm_name"] for message in told} == {"web"}
    assert {message.data["vm_id"] for message in told} == {vm["id"]}
    ids = [message.id for message in told]
    assert ids == sorted(set(ids))


async def test_the_last_event_always_says_the_state(manager: Manager) -> None:
    await manager.create(name="web")
    for action, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
        await manager.http.post(f"/v1/vms/web/{action}?wait={state}")
        last = (await listed(manager, path="/v1/vms/web/events"))[-1]
        assert (last["state"], (await manager.vm("web"))["state"]) == (state, state)
        assert last["actor"] == "admin"
        assert last["request_id"]


async def test_nothing_is_lost_across_reconnects_and_a_restart(settings: Settings) -> None:
    heard: list[int] = []
    async with running(settings) as manager:
        await manager.add_defaults()
        for name in ("a", "b", "c"):
            await manager.create(name=name)
        while len(heard) < 5:
            async with open_stream(manager, "after=0", heard[-1] if heard else None) as stream:
                heard.append((await stream.next()).data["id"])
    async with running(settings) as manager:
        await manager.http.delete("/v1/vms/b?wait=deleted")
        async with open_stream(manager, "after=0", heard[-1]) as stream:
            heard += [message.data["id"] for message in await stream.until("deleted")]
        assert heard == [event["id"] for event in await listed(manager)]


async def test_filters(manager: Manager) -> None:
    for name in ("a", "b"):
        await manager.create(name=name)
    await manager.http.post("/v1/vms/b/stop?force=true&wait=stopped")
    assert {event["vm_name"] for event in await listed(manager, "&vm=a")} == {"a"}
    states = {event["state"] for event in await listed(manager, "&state=running&state=stopped")}
    assert states == {"running", "stopped"}
    assert [event["vm_name"] for event in await listed(manager, "&reason=created")] == ["a", "b"]
    everything = await listed(manager)
    behind = await listed(manager, f"&after={everything[1]['id']}")
    assert behind == everything[2:]
    since = "&since=2999-01-01T00:00:00Z"
    assert await listed(manager, since) == []
    assert await listed(manager, "&since=1999-01-01T00:00:00Z") == everything
    async with open_stream(manager, "after=0&vm=b&reason=created&reason=stopped") as stream:
        assert (await stream.next()).data["vm_name"] == "b"
    async with open_stream(manager, "after=0", path="/v1/vms/b/events") as stream:
        assert (await stream.next()).data["vm_name"] == "b"


async def test_a_vm_that_is_gone_keeps_its_events(manager: Manager) -> None:
    vm = await manager.create(name="web")
    await manager.http.delete("/v1/vms/web?wait=deleted")
    for ref in ("web", vm["id"]):
        assert (await listed(manager, path=f"/v1/vms/{ref}/events"))[-1]["reason"] == "deleted"
    assert (await manager.http.get("/v1/vms/nobody/events")).status_code == 404
    async with open_stream(manager, path="/v1/vms/nobody/events") as stream:
        assert stream.status == 404


async def test_another_project_sees_nothing(manager: Manager) -> None:
    other = some_vm("theirs")
    other.project = "other"
    await write(manager.runtime.db, other, 3)
    assert await listed(manager) == []
    assert (await manager.http.get("/v1/vms/theirs/events")).status_code == 404
    assert (await manager.http.get(f"/v1/events?vm={other.id}")).status_code == 404
    assert (await manager.http.get("/v1/events?project=other")).status_code == 403


async def test_events_of_another_manager_are_seen_without_a_hint(
    manager: Manager, database_url: str
) -> None:
    elsewhere = Database(database_url)
    async with open_stream(manager) as stream:
        await stream.message()
        await write(elsewhere, some_vm(), 2)
        assert [(await stream.next()).data["reason"] for _ in range(2)] == ["r0", "r1"]
    await elsewhere.close()


async def test_heartbeats_carry_the_position_past_what_is_filtered_out(manager: Manager) -> None:
    manager.runtime.feed.heartbeat_s = 0.05
    await write(manager.runtime.db, some_vm(), 3)
    async with open_stream(manager, "reason=never") as stream:
        begin = (await stream.message()).id
        while begin is None:
            begin = (await stream.message()).id
        await write(manager.runtime.db, some_vm(), 3)
        while (now := await stream.message()).id != begin + 3:
            assert now.event == ""


async def test_a_slow_reader_costs_a_page(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    async def counted(*arguments: Any) -> events.Reading:
        found = await events.read(*arguments)
        reads.append(len(found.events))
        return found

    monkeypatch.setattr(feed, "read", counted)
    await write(manager.runtime.db, some_vm(), 5 * feed.PAGE)
    async with open_stream(manager, "after=0") as stream:
        await stream.next()
        # The reader holds the first page; the application waits with the second in its hand.
        for _ in range(3):
            await write(manager.runtime.db, some_vm(), 1)
            await anyio.lowlevel.checkpoint()
        assert len(reads) <= 2
        assert max(reads) == feed.PAGE
        rest = [await stream.next() for _ in range(5 * feed.PAGE + 2)]
    assert len({message.id for message in rest}) == 5 * feed.PAGE + 2


async def test_streams_are_bounded_and_a_reader_that_leaves_makes_room(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_STREAMS_PER_TOKEN", 2)
    async with open_stream(manager), open_stream(manager):
        async with open_stream(manager) as third:
            assert third.status == 429
            assert b"too_many_requests" in await third.chunk()
        monkeypatch.setattr(feed, "MOST_STREAMS_PER_TOKEN", 99)
        monkeypatch.setattr(feed, "MOST_STREAMS", 2)
        async with open_stream(manager) as third:
            assert third.status == 429
        assert manager.runtime.feed.streams == 2

    assert manager.runtime.feed.streams == 0


async def test_a_revoked_token_ends_its_streams(manager: Manager) -> None:
    manager.runtime.feed.heartbeat_s = 0.05
    async with open_stream(manager) as stream:
        await stream.message()
        async with manager.runtime.db.write() as session:
            await session.execute(update(TokenRow).values(revoked_at=datetime.now(UTC)))
        with pytest.raises(EOFError):
            await stream.until("never")


async def test_old_events_are_pruned_and_the_gap_is_told(manager: Manager) -> None:
    db = manager.runtime.db
    await write(db, some_vm(), 4, days_ago=3)
    await write(db, some_vm(), 2, days_ago=1)
    first = (await listed(manager))[0]["id"]
    assert await events.prune(db, datetime.now(UTC) - 2 * DAY) == 4
    assert await events.prune(db, datetime.now(UTC) - 2 * DAY) == 0
    kept = [event["id"] for event in await listed(manager)]
    assert len(kept) == 2
    async with open_stream(manager, last=first) as stream:
        gap = await stream.next()
        assert (gap.event, gap.id) == ("gap", first + 3)
        assert gap.data == {"after": first, "to": first + 3, "reason": "pruned"}
        assert [(await stream.next()).id for _ in range(2)] == kept
    async with open_stream(manager, "after=0") as stream:
        assert (await stream.next()).id == kept[0]
    async with open_stream(manager, last=first + 3) as stream:
        assert (await stream.next()).id == kept[0]


async def test_when_all_is_pruned_positions_stay(manager: Manager) -> None:
    db = manager.runtime.db
    await write(db, some_vm(), 3, days_ago=9)
    assert await events.prune(db, datetime.now(UTC) - DAY) == 3
    async with db.read() as session:
        horizon = await session.get_one(EventHorizonRow, 1)
        assert (await events.position(session)).final >= horizon.pruned_to > 0
    async with open_stream(manager, last=horizon.pruned_to) as stream:
        await stream.message()
        await write(db, some_vm(), 1)
        assert (await stream.next()).event == "vm"


async def test_a_position_of_another_life_is_a_gap(manager: Manager) -> None:
    await write(manager.runtime.db, some_vm(), 1)
    async with open_stream(manager, last=10**9) as stream:
        gap = await stream.next()
        assert (gap.event, gap.data["reason"], gap.data["after"]) == ("gap", "ahead", 10**9)
        await write(manager.runtime.db, some_vm(), 1)
        assert (await stream.next()).event == "vm"


async def test_events_are_pruned_in_batches(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PRUNE_BATCH", 10)
    await write(manager.runtime.db, some_vm(), 35, days_ago=40)
    assert await events.prune(manager.runtime.db, datetime.now(UTC) - 30 * DAY) == 35


async def test_a_manager_prunes_by_its_setting(settings: Settings) -> None:
    db = Database(settings.database_url)
    await db.migrate()
    await write(db, some_vm(), 2, days_ago=31)
    await db.close()
    async with running(settings) as manager:

        async def empty() -> bool:
            return await listed(manager) == []

        await until("old events are gone", empty)


def test_how_long_events_are_kept_is_a_positive_number() -> None:
    given = {"NEXUS_DATA_DIR": "/d", "MANAGER_EVENTS_KEEP_DAYS": "0.5"}
    assert Settings.from_env(given).events_keep_days == 0.5
    assert Settings.from_env({}).events_keep_days == 30
    for bad in ("0", "-1", "nan", "for ever"):
        with pytest.raises(BadSetting, match="MANAGER_EVENTS_KEEP_DAYS"):
            Settings.from_env({"MANAGER_EVENTS_KEEP_DAYS": bad})
