"""Leases: whatever workers do in whatever order, one at a time holds a row."""

import tempfile
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import true
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.ids import new_id
from nexus.manager.db.session import Database
from nexus.manager.db.tables import ImageBuildRow
from nexus.manager.pipelines import leases

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def build(at: datetime = NOW) -> ImageBuildRow:
    return ImageBuildRow(
        id=new_id(),
        project="default",
        recipe="busybox",
        state="queued",
        progress=0.0,
        step="",
        images=[],
        actor="test",
        created_at=at,
        updated_at=at,
        next_attempt_at=at,
        attempts=0,
    )


async def claim(session: AsyncSession, owner: str, now: datetime, limit: int = 1) -> list[str]:
    rows = await leases.claim(session, ImageBuildRow, true(), owner, now, limit)
    return [row.lease_token or "" for row in rows]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["claim", "renew", "apply", "die"]),
            st.sampled_from(["a", "b", "c"]),
            st.floats(0, 40),
        ),
        max_size=25,
    )
)
def test_one_worker_at_a_time_applies(steps: list[tuple[str, str, float]]) -> None:
    """Workers claim, renew, apply and die with time passing; a model says who holds the row."""

    async def history(folder: str) -> None:
        db = Database(f"sqlite:///{folder}/leases.db")
        await db.migrate()
        row = build()
        row_id = row.id
        async with db.write() as session:
            session.add(row)
        now = NOW
        tokens: dict[str, str] = {}
        holder: str | None = None
        expires = NOW
        for step, worker, passes_s in steps:
            now += timedelta(seconds=passes_s)
            async with db.write() as session:
                if step == "claim":
                    got = await claim(session, worker, now)
                    assert bool(got) == (holder is None or expires <= now)
                    if got:
                        tokens[worker], holder = got[0], worker
                        expires = now + timedelta(seconds=leases.LEASE_S)
                elif step == "renew" and worker in tokens:
                    await leases.renew(session, ImageBuildRow, [tokens[worker]], now)
                    if holder == worker:
                        expires = now + timedelta(seconds=leases.LEASE_S)
                elif step == "apply" and worker in tokens:
                    mine = await leases.held(session, ImageBuildRow, row_id, tokens[worker])
                    assert (mine is not None) == (holder == worker)
                    if mine is not None:
                        leases.release(mine)
                        holder = None
                    del tokens[worker]
                elif step == "die":
                    tokens.pop(worker, None)
                    if holder == worker:
                        holder = "a dead one"
        await db.close()

    with tempfile.TemporaryDirectory() as folder:
        anyio.run(history, folder)


@pytest.mark.anyio
async def test_rows_go_to_one_worker_each(database_url: str) -> None:
    db = Database(database_url)
    await db.migrate()
    async with db.write() as session:
        session.add_all([build() for _ in range(60)])
    taken: list[str] = []

    async def work(owner: str) -> None:
        while True:
            async with db.write() as session:
                rows = await leases.claim(
                    session, ImageBuildRow, true(), owner, datetime.now(UTC), 7
                )
                taken.extend(row.id for row in rows)
            if not rows:
                return

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(work, f"w{number}")
    assert len(taken) == len(set(taken)) == 60
    await db.close()


@pytest.mark.anyio
async def test_rows_that_rest_are_left_alone(database_url: str) -> None:
    db = Database(database_url)
    await db.migrate()
    now = datetime.now(UTC)
    async with db.write() as session:
        session.add(build(now + timedelta(seconds=5)))
    async with db.read() as session:
        assert not await leases.any_due(session, ImageBuildRow, true(), now)
        later = now + timedelta(seconds=6)
        assert await leases.any_due(session, ImageBuildRow, true(), later)
    await db.close()
