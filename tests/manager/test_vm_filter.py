"""Narrowing the list of VMs, on both databases, and the tags' index that it uses."""

from collections.abc import Sequence

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, delete, select, text

from nexus.manager.db.migrations.versions import v0002_vm_tags
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow, VmTagRow
from nexus.manager.services.vm_filter import VmFilter
from nexus.manager.services.vm_tags import TagTerm
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager
from tests.manager.rows import host_row, image_row, vm_row

pytestmark = pytest.mark.anyio


async def names(manager: Manager, *query: tuple[str, str]) -> list[str]:
    answer = await manager.http.get("/v1/vms", params=list(query))
    assert answer.status_code == 200, answer.text
    return [vm["name"] for vm in answer.json()["items"]]


@pytest.fixture
async def three(manager: Manager) -> Manager:
    for name, tags in (
        ("red-1", {"team": "red", "tier": "web"}),
        ("red-2", {"team": "red", "note": "a=b"}),
        ("blue-1", {"team": "blue", "tier": ""}),
    ):
        await manager.create("", name=name, start=False, tags=tags)
    return manager


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (["team=red"], ["red-1", "red-2"]),
        (["team"], ["red-1", "red-2", "blue-1"]),
        (["team=red", "tier"], ["red-1"]),
        (["tier="], ["blue-1"]),
        (["note=a=b"], ["red-2"]),
        (["team=re"], []),
        (["TEAM=red"], []),
        (["nothing"], []),
    ],
)
async def test_tags_narrow_a_list(three: Manager, tags: Sequence[str], found: list[str]) -> None:
    assert await names(three, *[("tag", tag) for tag in tags]) == found


async def test_conditions_add_up(three: Manager, agent: AgentDouble) -> None:
    assert await names(three, ("host", agent.host_id), ("tag", "tier")) == ["red-1", "blue-1"]
    assert await names(three, ("host", "double"), ("name", "red")) == ["red-1", "red-2"]
    assert await names(three, ("host", "elsewhere")) == []
    assert await names(three, ("project", "default"), ("name", "blue")) == ["blue-1"]
    assert await names(three, ("state", "paused"), ("tag", "team")) == []
    refused = await three.http.get("/v1/vms?project=other")
    assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")


async def test_pages_of_a_narrowed_list_are_whole(three: Manager) -> None:
    first = (await three.http.get("/v1/vms?tag=team&limit=2")).json()
    rest = (await three.http.get(f"/v1/vms?tag=team&cursor={first['next_cursor']}")).json()
    assert [vm["name"] for vm in first["items"] + rest["items"]] == ["red-1", "red-2", "blue-1"]
    assert rest["next_cursor"] is None


async def test_the_index_follows_the_tags(database_url: str) -> None:
    db = Database(database_url)
    await db.migrate()
    host, image = host_row(), image_row("kernel")
    vm = vm_row("one", host, image)
    vm.tags = {"a": "1", "b": "2"}
    async with db.write() as session:
        session.add_all([host, image])
        await session.flush()
        session.add(vm)

    async def indexed() -> dict[str, str]:
        async with db.read() as session:
            return {row.key: row.value for row in await session.scalars(select(VmTagRow))}

    assert await indexed() == {"a": "1", "b": "2"}
    for tags in ({"a": "3", "c": ""}, {}, {"d": "4"}):
        async with db.write() as session:
            row = await session.get_one(VmRow, vm.id)
            row.tags = tags
        assert await indexed() == tags
    async with db.write() as session:
        (await session.get_one(VmRow, vm.id)).boot += 1
    assert await indexed() == {"d": "4"}
    async with db.write() as session:
        await session.delete(await session.get_one(VmRow, vm.id))
    assert await indexed() == {}
    await db.close()


async def test_tags_of_before_are_indexed_by_the_migration(database_url: str) -> None:
    db = Database(database_url)
    await db.migrate()
    host, image = host_row(), image_row("kernel")
    vm = vm_row("old", host, image)
    vm.tags = {"a": "1", "ü": "'"}
    async with db.write() as session:
        session.add_all([host, image])
        await session.flush()
        session.add(vm)

    def fill(connection: Connection) -> None:
        with Operations.context(MigrationContext.configure(connection)):
            v0002_vm_tags.fill()

    async with db.write() as session:
        await session.execute(delete(VmTagRow))
        await (await session.connection()).run_sync(fill)
    async with db.read() as session:
        rows = (await session.scalars(select(VmTagRow))).all()
    assert {(row.vm_id, row.project, row.key): row.value for row in rows} == {
        (vm.id, "default", "a"): "1",
        (vm.id, "default", "ü"): "'",
    }
    await db.close()


async def test_tags_are_looked_up_in_an_index(sqlite_url: str) -> None:
    db = Database(sqlite_url)
    await db.migrate()
    query = select(VmRow.id).where(*VmFilter(tags=["a=b"]).conditions("default"))
    async with db.read() as session:
        sql = query.compile(db.engine.sync_engine, compile_kwargs={"literal_binds": True})
        plan = (await session.execute(text(f"EXPLAIN QUERY PLAN {sql}"))).all()
    assert "ix_vm_tags_lookup" in str(plan)
    await db.close()


def test_a_selector_splits_at_the_first_equals_sign() -> None:
    assert TagTerm.parse("a=b=c") == TagTerm("a", "b=c")
    assert TagTerm.parse("a=") == TagTerm("a", "")
    assert TagTerm.parse("a") == TagTerm("a", None)
