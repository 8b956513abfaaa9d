"""Whether a capture is written to the host's memory, and what becomes of it."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from nexus.agent import meminfo
from nexus.agent.capture_files import CaptureFiles, Ram
from nexus.agent.layout import Layout, SnapshotPaths, VmPaths
from nexus.agent.record import Record
from nexus.api.common import Engine
from nexus.ids import new_id

FIRECRACKER = Record(engine="firecracker")


@pytest.fixture
def paths(tmp_path: Path) -> VmPaths:
    paths = Layout(tmp_path).vm(new_id())
    paths.root.mkdir(parents=True)
    return paths


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
def test_memory_is_lent_where_it_is_of_use_and_can_be_spared(
    host: None,
    paths: VmPaths,
    engine: Engine,
    jailed: bool,
    lends: bool,
    mem_mib: int,
    in_memory: bool,
) -> None:
    record = Record(engine=engine, jailed=jailed)
    with Ram(lends=lends).files_for(record, mem_mib, paths) as files:
        assert (files.ram is not None) is in_memory


def test_it_is_lent_once(host: None, paths: VmPaths) -> None:
    ram = Ram()
    with ExitStack() as both:
        first = both.enter_context(ram.files_for(FIRECRACKER, 600, paths))
        second = both.enter_context(ram.files_for(FIRECRACKER, 600, paths))
        assert (first.ram is None, second.ram is None) == (False, True)
    with ram.files_for(FIRECRACKER, 600, paths) as third:
        assert third.ram is not None


@pytest.mark.parametrize("lends", [False, True])
def test_it_gets_into_the_folder(paths: VmPaths, tmp_path: Path, lends: bool) -> None:
    folder = SnapshotPaths(tmp_path / "snapshot")
    folder.dir.mkdir()
    before = len([*Path("/proc/self/fd").iterdir()])
    with Ram(lends=lends).files_for(FIRECRACKER, 1, paths) as files:
        written(files, b"a moment")
        files.move(folder)
        files.save(folder)
    assert [*paths.root.iterdir()] == []
    assert folder.memory.read_bytes() == folder.state.read_bytes() == b"a moment"
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_holes_stay_holes(paths: VmPaths, tmp_path: Path) -> None:
    folder = SnapshotPaths(tmp_path / "snapshot")
    folder.dir.mkdir()
    with Ram().files_for(FIRECRACKER, 1, paths) as files:
        written(files, b"")
        with (files.root / files.memory).open("r+b") as memory:
            memory.truncate(64 << 20)
            memory.seek(32 << 20)
            memory.write(b"x" * 4096)
        files.save(folder)
    found = folder.memory.stat()
    assert (found.st_size, found.st_blocks * 512) == (64 << 20, 4096)
