"""The files of snapshots: merged, sealed, and safe from what a hostile VMM puts in their place."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.agent import snapshot_files

PAGE = snapshot_files.PIECE
PAGES = 20
"""More than is hashed at once."""

pages = st.dictionaries(st.integers(0, PAGES - 1), st.integers(0, 3), max_size=20)
"""Numbers of pages, and what each is filled with: also zeros, which are news in a diff."""


def memory(file: Path, written: dict[int, int]) -> bytes:
    file.unlink(missing_ok=True)
    with file.open("xb") as opened:
        opened.truncate(PAGES * PAGE)
        for number, byte in written.items():
            opened.seek(number * PAGE)
            opened.write(bytes([byte]) * PAGE)
    return file.read_bytes()


@settings(max_examples=25, deadline=None)
@given(below=pages, above=pages)
def test_a_diff_over_its_parent_is_what_was_there_also_twice(
    tmp_path_factory: pytest.TempPathFactory, below: dict[int, int], above: dict[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("m")
    parent, diff = folder / "parent", folder / "mem"
    memory(parent, below)
    memory(diff, above)
    whole = memory(folder / "whole", below | above)
    for _ in range(2):
        merged = snapshot_files.merge(parent, diff)
        assert diff.read_bytes() == whole
        assert merged.sha256 == hashlib.sha256(whole).hexdigest()
    assert sorted(path.name for path in folder.iterdir()) == ["mem", "parent", "whole"]


@settings(max_examples=20, deadline=None)
@given(written=pages)
def test_sealed_memory_is_the_same_and_its_zeros_take_no_space(
    tmp_path_factory: pytest.TempPathFactory, written: dict[int, int]
) -> None:
    file = tmp_path_factory.mktemp("m") / "mem"
    content = memory(file, dict.fromkeys(range(PAGES), 0) | written)
    sealed = snapshot_files.seal(file, memory=True)
    assert file.read_bytes() == content
    assert sealed.sha256 == hashlib.sha256(content).hexdigest()
    assert (sealed.size_bytes, file.stat().st_mode & 0o777) == (len(content), 0o444)
    told = {number for number, byte in written.items() if byte}
    # The file system's own notes of where the pieces are may take a block.
    assert sealed.disk_bytes <= len(told) * PAGE + 4096


def test_what_a_vmm_puts_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    link, second = tmp_path / "link", tmp_path / "second"
    link.symlink_to(secret)
    os.link(secret, second)
    for file in (link, second, tmp_path):
        with pytest.raises(OSError):
            snapshot_files.seal(file)
    with pytest.raises(OSError):
        snapshot_files.clone(link, tmp_path / "copy")
    with pytest.raises(OSError):
        snapshot_files.merge(secret, link)
    assert secret.stat().st_mode & 0o777 == 0o644
