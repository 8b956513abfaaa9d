"""The order of events on PostgreSQL, where transactions commit in an order of their own."""

import random
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from sqlalchemy import select, text

from nexus.ids import new_id
from nexus.manager import uow
from nexus.manager.db.journal_tables import VmEventRow
from nexus.manager.db.session import Database
from nexus.manager.services.events import EventFilter, position, read
from tests.manager import postgres
from tests.manager.rows import host_row, image_row, vm_row

pytestmark = pytest.mark.anyio

VM = vm_row("vm", host_row(), image_row("kernel"))
ALL = EventFilter("default")
WRITERS = 8
ROUNDS = 12


@pytest.fixture
def url(postgres_folder: Path) -> Iterator[str]:
    name = "t" + new_id().replace("-", "")
    yield postgres.make_database(postgres_folder, name)
    postgres.drop_database(postgres_folder, name)


@pytest.fixture
async def db(url: str) -> AsyncIterator[Database]:
    made = Database(url)
    await made.migrate()
    yield made
    await made.close()


def an_event() -> VmEventRow:
    return uow.vm_event(uow.SYSTEM, VM, datetime.now(UTC), "running", "r", "m")


async def final(db: Database) -> int:
    async with db.read() as session:
        return (await position(session)).final


async def test_a_running_transaction_holds_back_what_came_after_it(db: Database) -> None:
    async with db.write() as session:
        session.add(an_event())
    before = await final(db)
    async with db.write() as slow:
        slow.add(first := an_event())
        await slow.flush()
        async with db.write() as fast:
            fast.add(second := an_event())
        assert first.id < second.id
        # The second is committed, but the first may still come below it.
        assert await final(db) == before
    assert await final(db) == second.id
    found = await read(db, ALL, before, second.id, 10)
    assert [event.id for event in found.events] == [first.id, second.id]


async def test_a_transaction_that_is_rolled_back_holds_nothing_back(db: Database) -> None:
    class Enough(Exception):
        pass

    async def refused() -> None:
        async with db.write() as session:
            session.add(an_event())
            await session.flush()
            raise Enough

    with pytest.raises(Enough):
        await refused()
    async with db.write() as session:
        session.add(kept := an_event())
    assert await final(db) == kept.id


async def test_one_transaction_takes_one_lock_however_many_events_it_writes(db: Database) -> None:
    async with db.write() as session:
        session.add_all(an_event() for _ in range(50))
        await session.flush()
        held = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        )
        assert await session.scalar(text(held)) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_a_reader_misses_nothing_of_many_writers(db: Database, url: str, seed: int) -> None:
    """Writers commit out of order and roll back; readers of another manager page along."""
    chance = random.Random(seed)  # noqa: S311 - for pauses
    elsewhere = Database(url)
    done = anyio.Event()
    heard: list[int] = []

    async def write(pauses: list[float], keeps: list[bool]) -> None:
        for pause_s, keep in zip(pauses, keeps, strict=True):
            async with db.engine.connect() as connection, connection.begin() as transaction:
                insert = VmEventRow.__table__.insert().values(
                    project="default", vm_id=VM.id, vm_name="vm", at=datetime.now(UTC),
                    state="running", reason="r", message="m", actor="a",
                )  # fmt: skip
                await connection.execute(insert)
                await anyio.sleep(pause_s)
                await connection.execute(insert)
                if not keep:
                    await transaction.rollback()

    async def follow() -> None:
        cursor = 0
        while True:
            last_round = done.is_set()
            upto = await final(elsewhere)
            while cursor < upto:
                found = await read(elsewhere, ALL, cursor, upto, 7)
                heard.extend(event.id for event in found.events)
                cursor = found.to
            if last_round:
                return
            await anyio.lowlevel.checkpoint()

    with anyio.fail_after(120):
        async with anyio.create_task_group() as reading:
            reading.start_soon(follow)
            async with anyio.create_task_group() as writing:
                for _ in range(WRITERS):
                    pauses = [chance.choice([0, 0, 0.001, 0.01, 0.03]) for _ in range(ROUNDS)]
                    keeps = [chance.random() < 0.8 for _ in range(ROUNDS)]
                    writing.start_soon(write, pauses, keeps)
            done.set()
    async with db.read() as session:
        kept = (await session.scalars(select(VmEventRow.id).order_by(VmEventRow.id))).all()
    assert len(kept) > WRITERS * ROUNDS
    assert heard == list(kept)
    await elsewhere.close()
