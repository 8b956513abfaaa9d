"""Folders that are ready before there is a VM for them."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from nexus.agent.blanks import KEPT, Blanks
from nexus.agent.layout import Layout, VmPaths
from nexus.agent.record import Record, load_desired, load_record
from nexus.ids import new_id
from tests.agent.harness import Agent, a_wish, until
from tests.agent.test_failures import fill, mounted


def inodes(folder: Path) -> set[int]:
    return {entry.stat().st_ino for entry in folder.iterdir()} if folder.is_dir() else set()


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


async def all_are_ready(layout: Layout) -> None:
    ready = partial(until, "all are ready", lambda: len(inodes(layout.blanks_dir)) == KEPT)
    await anyio.to_thread.run_sync(ready)


@asynccontextmanager
async def kept(layout: Layout) -> AsyncIterator[Blanks]:
    """Blanks that are all ready."""
    layout.prepare()
    blanks = Blanks(layout)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(blanks.run)
        await all_are_ready(layout)
        yield blanks
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_blank_becomes_a_vm_as_a_whole(tmp_path: Path) -> None:
    layout, machine = Layout(tmp_path), a_wish()
    left = layout.blanks_dir / "half"
    left.mkdir(parents=True)
    async with kept(layout) as blanks:
        assert not left.exists()
        ready = inodes(layout.blanks_dir)
        paths, record = layout.vm(machine.id), Record(engine="firecracker")
        assert blanks.become(paths, record, machine)
        assert paths.dir.stat().st_ino in ready
        assert load_desired(paths.desired) == machine
        assert load_record(paths.status) == record
        record.boot = 1
        record.save(paths)
        assert load_record(paths.status) == record
        assert paths.console_in.is_fifo()
        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in paths.dir.iterdir()}
        assert modes.pop("root") == paths.dir.stat().st_mode & 0o777 == 0o700
        assert set(modes.values()) == {0o600}
        await all_are_ready(layout)
        assert len(inodes(layout.blanks_dir) - ready) == 1


@pytest.mark.anyio
async def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    layout, machine, record = Layout(tmp_path), a_wish(), Record(engine="firecracker")
    async with kept(layout) as blanks:
        paths = layout.vm(machine.id)
        paths.dir.mkdir()
        (paths.dir / "disk").write_bytes(b"the only one")
        assert not blanks.become(paths, record, machine)
        assert [entry.name for entry in paths.dir.iterdir()] == ["disk"]
        jailed = VmPaths(machine.id, layout.vms_dir / "jailed", jailed=True)
        assert not blanks.become(jailed, record, machine)
        shutil.rmtree(layout.blanks_dir)
        assert not blanks.become(layout.vm(new_id()), record, machine)


@pytest.mark.root
def test_a_full_disk_takes_no_wish(tmp_path: Path) -> None:
    layout, machine = Layout(tmp_path / "small"), a_wish()

    async def scenario() -> None:
        async with kept(layout) as blanks:
            fill(layout.run_dir)
            with pytest.raises(OSError, match="No space left"):
                blanks.become(layout.vm(machine.id), Record(engine="firecracker"), machine)
            assert [*layout.vms_dir.iterdir()] == []
            assert len(inodes(layout.blanks_dir)) == KEPT - 1

    with mounted(layout.run_dir, "1M"):
        anyio.run(scenario)


@pytest.mark.firecracker
@pytest.mark.root
def test_an_agent_makes_vms_of_blanks(agent: Agent, tiny_kernel: Path) -> None:
    folder = agent.run_dir / "blanks"
    until("all are ready", lambda: len(inodes(folder)) == KEPT)
    ready = inodes(folder)
    machine = agent.machine(tiny_kernel)
    assert agent.put(machine).state == "running"
    assert (agent.run_dir / "vms" / machine.id).stat().st_ino in ready
    until("another takes its place", lambda: len(inodes(folder)) == KEPT)
    agent.kill()
    before = names(folder)
    agent.start()
    assert agent.get(machine.id).state == "running"
    until("others take their place", lambda: len(names(folder) - before) == KEPT)
    assert not names(folder) & before
