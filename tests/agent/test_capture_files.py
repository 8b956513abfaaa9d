"""Whether a capture is written to the host's memory, and what becomes of it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from nexus.agent import capture_files, meminfo
from nexus.agent.capture_files import CaptureFiles, Ram
from nexus.agent.layout import Layout, SnapshotPaths, VmPaths
from nexus.agent.record import Record
from nexus.api.common import Engine
from nexus.ids import new_id

pytestmark = pytest.mark.anyio

FIRECRACKER = Record(engine="firecracker")


@pytest.fixture
def paths(tmp_path: Path) -> VmPaths:
    paths = Layout(tmp_path).vm(new_id())
    paths.root.mkdir(parents=True)
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> SnapshotPaths:
    folder = SnapshotPaths(tmp_path / "snapshot")
    folder.dir.mkdir()
    return folder


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with 8 GiB, of which 2 are available."""
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:        8388608 kB\nMemAvailable:    2097152 kB\nHugePages: x\n")
    monkeypatch.setattr(meminfo, "FILE", file)


def written(files: CaptureFiles, text: bytes) -> None:
    """As a VMM in its root does it."""
    for name in (files.memory, files.state):
        (files.root / name).write_bytes(text)


@contextmanager
def small_file_system(folder: Path, huge: str) -> Iterator[Path]:
    """In shared memory, with pages as huge as it says."""
    folder.mkdir()
    options = f"size=32M,huge={huge}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "shm", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize(
    ("engine", "jailed", "lends", "mem_mib", "in_memory"),
    [
        ("firecracker", False, True, 1024, True),
        ("firecracker", False, True, 1025, False),
        ("firecracker", False, False, 1, False),
        ("firecracker", True, True, 1, False),
        ("qemu", False, True, 1, False),
    ],
)
async def test_memory_is_lent_where_it_is_of_use_and_can_be_spared(
    host: None,
    paths: VmPaths,
    engine: Engine,
    jailed: bool,
    lends: bool,
    mem_mib: int,
    in_memory: bool,
) -> None:
    record = Record(engine=engine, jailed=jailed)
    async with Ram(lends=lends).files_for(record, mem_mib, paths) as files:
        assert (files.ram is not None) is in_memory


async def test_it_is_lent_once(host: None, paths: VmPaths) -> None:
    ram = Ram()
    async with AsyncExitStack() as both:
        first = await both.enter_async_context(ram.files_for(FIRECRACKER, 600, paths))
        second = await both.enter_async_context(ram.files_for(FIRECRACKER, 600, paths))
        assert (first.ram is None, second.ram is None) == (False, True)
    async with ram.files_for(FIRECRACKER, 600, paths) as third:
        assert third.ram is not None


@pytest.mark.parametrize("lends", [False, True])
async def test_it_gets_into_the_folder(paths: VmPaths, folder: SnapshotPaths, lends: bool) -> None:
    before = len(descriptors())
    async with Ram(lends=lends).files_for(FIRECRACKER, 1, paths) as files:
        written(files, b"a moment")
        files.move(folder)
        files.save(folder)
        assert [os.fstat(each).st_size for each in files.ram or ()] == [0, 0] * lends
    assert [*paths.root.iterdir()] == []
    assert folder.memory.read_bytes() == folder.state.read_bytes() == b"a moment"
    assert len(descriptors()) == before


async def test_what_was_not_written_is_a_hole(paths: VmPaths, folder: SnapshotPaths) -> None:
    async with Ram().files_for(FIRECRACKER, 1, paths) as files:
        written(files, b"")
        with (files.root / files.memory).open("r+b") as memory:
            memory.truncate(64 << 20)
            memory.seek(32 << 20)
            memory.write(b"x" * 4096)
        files.save(folder)
    found = folder.memory.stat()
    assert (found.st_size, found.st_blocks * 512) == (64 << 20, 4096)


@pytest.mark.root
@pytest.mark.parametrize(("huge", "tells"), [("never", True), ("always", False)])
async def test_huge_pages_hide_what_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: VmPaths, huge: str, tells: bool
) -> None:
    with small_file_system(tmp_path / "shm", huge) as shm:

        def in_there(name: str, flags: int) -> int:
            return os.open(shm / name, os.O_RDWR | os.O_CREAT, 0o600)

        monkeypatch.setattr(os, "memfd_create", in_there)
        async with Ram().files_for(FIRECRACKER, 1, paths) as files:
            assert (files.ram is not None) is tells


async def test_a_late_vmm_finds_no_other_file(paths: VmPaths) -> None:
    ram, names = Ram(), set[str]()
    for _ in range(3):
        async with ram.files_for(FIRECRACKER, 1, paths) as files:
            names |= {files.memory, files.state}
        with (paths.root / "other").open("wb"):
            assert not any((files.root / name).exists() for name in names)
    assert len(names) == 6


async def test_a_host_that_has_none_to_give(
    paths: VmPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, flags: int) -> NoReturn:
        raise PermissionError(13, "memfd_noexec")

    before = descriptors()
    monkeypatch.setattr(capture_files.os, "memfd_create", refuse)
    async with Ram().files_for(FIRECRACKER, 1, paths) as files:
        assert files.ram is None
    assert descriptors() == before
