"""What is on the shelf never leans on what is not."""

from pathlib import Path

import anyio
import pytest

from nexus.agent import snapshot_files
from nexus.agent.layout import Layout, SnapshotPaths
from nexus.agent.snapshots import Shelf
from nexus.api.errors import Conflict
from nexus.api.snapshots import HostSnapshot
from nexus.ids import new_id
from tests.agent.test_snapshot_rules import machine, snapshot

pytestmark = pytest.mark.anyio

PAGE = 4096
VM = machine()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    layout = Layout(tmp_path)
    layout.prepare()
    return Shelf(layout)


async def keep(
    shelf: Shelf, folder: SnapshotPaths, snapshot_id: str, parent: str | None, page: int
) -> HostSnapshot:
    """Memory of two pages, one of them written to."""
    with folder.memory.open("wb") as memory:
        memory.truncate(2 * PAGE)
        memory.seek(page * PAGE)
        memory.write(b"%d" % page * PAGE)
    meta = snapshot(
        VM,
        id=snapshot_id,
        kind="diff" if parent else "full",
        parent_id=parent,
        needs_parent=parent is not None,
        files=[snapshot_files.seal(folder.memory)],
    )
    return await shelf.keep(snapshot_id, lambda: meta)


async def test_a_parent_goes_only_when_the_diff_that_is_being_taken_is_whole(shelf: Shelf) -> None:
    full, diff = new_id(), new_id()
    with shelf.making(full) as folder:
        await keep(shelf, folder, full, None, 0)
    async with anyio.create_task_group() as tasks:
        with shelf.making(diff, full) as folder:
            tasks.start_soon(shelf.delete, full)
            await anyio.wait_all_tasks_blocked()
            await keep(shelf, folder, diff, full, 1)
    assert shelf.find(full) is None
    assert not shelf.paths(full).dir.exists()
    assert not shelf.get(diff).needs_parent
    assert shelf.paths(diff).memory.read_bytes() == b"0" * PAGE + b"1" * PAGE


async def test_a_diff_of_what_is_gone_is_refused(shelf: Shelf) -> None:
    full, diff = new_id(), new_id()
    with shelf.making(full) as folder:
        await keep(shelf, folder, full, None, 0)
    await shelf.delete(full)
    with pytest.raises(Conflict) as refused, shelf.making(diff, full):
        pass
    assert "full snapshot" in (refused.value.suggestion or "")
    with shelf.making(diff) as folder:
        await keep(shelf, folder, diff, None, 1)
    assert [kept.id for kept in shelf.all()] == [diff]


async def test_a_parent_goes_although_a_diff_of_it_came_to_nothing(shelf: Shelf) -> None:
    full = new_id()
    with shelf.making(full) as folder:
        await keep(shelf, folder, full, None, 0)
    async with anyio.create_task_group() as tasks:
        with shelf.making(new_id(), full):
            tasks.start_soon(shelf.delete, full)
            await anyio.wait_all_tasks_blocked()
            assert shelf.find(full) is not None
    assert shelf.all() == []
