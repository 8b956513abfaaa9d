"""Memory files of machines and snapshots; this process stands in for QEMU and maps them."""

import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.qemu import memory
from nexus.qemu.faults import Fault

PAGE = mmap.PAGESIZE
PAGES = 64
SIZE = PAGES * PAGE
NUMBERS = st.integers(0, PAGES - 1)


def snapshot(folder: Path, pages: set[int]) -> Path:
    """A memory file with these pages and holes between them."""
    path = folder / "mem"
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for page in pages:
            os.pwrite(file.fileno(), bytes([page + 1]) * PAGE, page * PAGE)
    return path


@settings(max_examples=40, deadline=None)
@given(there=st.sets(NUMBERS), read=st.sets(NUMBERS), written=st.sets(NUMBERS))
def test_what_was_changed_is_laid_over_what_was_loaded(
    tmp_path_factory: pytest.TempPathFactory, there: set[int], read: set[int], written: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("memory")
    path = snapshot(folder, there)
    before = path.read_bytes()
    loaded = memory.of_snapshot(str(path), SIZE, huge=False, discards=False)
    assert loaded.private
    with mmap.mmap(loaded.fd, SIZE, mmap.MAP_PRIVATE) as guest:
        for page in read:
            assert guest[page * PAGE] == (page + 1 if page in there else 0)
        for page in written:
            guest[page * PAGE] = 255
        loaded.save(str(folder / "full"), os.getpid(), changes_only=False)
        loaded.save(str(folder / "diff"), os.getpid(), changes_only=True)
        assert (folder / "full").read_bytes() == guest[:]
        assert path.read_bytes() == before
        diff = (folder / "diff").read_bytes()
        for page in range(PAGES):
            here = slice(page * PAGE, (page + 1) * PAGE)
            assert diff[here] == (guest[here] if page in written else bytes(PAGE))
        # Over the name of the file that is mapped: what is mapped stays as it is.
        loaded.save(str(path), os.getpid(), changes_only=False)
        assert path.read_bytes() == guest[:] == (folder / "full").read_bytes()
    loaded.close()


def test_memory_that_is_discarded_in_its_file_is_a_copy(tmp_path: Path) -> None:
    """A balloon under QEMU punches holes into the file, also when it is mapped privately."""
    path = snapshot(tmp_path, {1, 5})
    loaded = memory.of_snapshot(str(path), SIZE, huge=False, discards=True)
    assert not loaded.private
    assert os.fstat(loaded.fd).st_blocks * 512 == 2 * PAGE
    with mmap.mmap(loaded.fd, SIZE) as guest:
        assert guest[:] == path.read_bytes()
        guest[0] = 7
        loaded.save(str(tmp_path / "full"), os.getpid(), changes_only=True)
        assert (tmp_path / "full").read_bytes() == guest[:]
    assert path.read_bytes()[0] == 0
    loaded.close()


@pytest.mark.root
def test_a_file_that_may_not_be_opened_for_writing_is_copied(tmp_path: Path) -> None:
    path = snapshot(tmp_path, {1})
    path.chmod(0o444)
    with path.open("rb") as file:
        os.seteuid(65534)
        try:
            here = f"/proc/self/fd/{file.fileno()}"
            loaded = memory.of_snapshot(here, SIZE, huge=False, discards=False)
        finally:
            os.seteuid(0)
    assert not loaded.private
    loaded.close()


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + PAGE])
def test_a_file_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "mem"
    path.write_bytes(bytes(size))
    with pytest.raises(Fault, match=f"The memory file has {size} bytes"):
        memory.of_snapshot(str(path), SIZE, huge=False, discards=False)


def test_memory_that_nobody_maps_cannot_be_saved(tmp_path: Path) -> None:
    loaded = memory.of_snapshot(str(snapshot(tmp_path, {1})), SIZE, huge=False, discards=False)
    with pytest.raises(Fault, match="does not map all"):
        loaded.save(str(tmp_path / "full"), os.getpid(), changes_only=False)
    loaded.close()


def test_memory_in_huge_pages_does_not_come_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="Cannot restore hugetlbfs backed snapshot") as refused:
        memory.of_snapshot(str(snapshot(tmp_path, {1})), SIZE, huge=True, discards=False)
    assert refused.value.fatal
