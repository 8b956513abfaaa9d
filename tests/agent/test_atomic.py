"""Small files are replaced as wholes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nexus.agent.atomic import write_atomically, write_often


def test_a_text_that_changes_often_is_always_the_last_one_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    for text in (b"one", b"a longer one", b"3", b"", b"x" * 20_000, b"six"):
        write_often(file, text)
        assert file.read_bytes() == text
    assert file.stat().st_mode & 0o777 == 0o600
    assert len([*tmp_path.iterdir()]) == 2


def test_who_reads_while_it_changes_keeps_what_was_opened(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_often(file, b"before")
    with file.open("rb") as reader:
        write_often(file, b"after that")
        assert reader.read() == b"before"
    assert file.read_bytes() == b"after that"


def test_a_text_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_often(file, b"before")
    (tmp_path / ".status.json.spare").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_often(file, b"after")
    assert file.read_bytes() == b"before"


@pytest.mark.parametrize("write", [write_atomically, write_often])
def test_a_link_that_lies_in_wait_is_not_followed(
    tmp_path: Path, write: Callable[[Path, bytes], None]
) -> None:
    victim, file = tmp_path / "victim", tmp_path / "vm.json"
    victim.write_bytes(b"of the host")
    write(file, b"one")
    for place in (".vm.json.new", ".vm.json.spare"):
        (tmp_path / place).unlink(missing_ok=True)
        (tmp_path / place).symlink_to(victim)
    write(file, b"two")
    assert victim.read_bytes() == b"of the host"
    assert (file.read_bytes(), file.is_symlink()) == (b"two", False)


def test_what_a_writer_left_that_died_is_in_nobodys_way(tmp_path: Path) -> None:
    file, left = tmp_path / "desired.json", tmp_path / ".desired.json.new"
    left.write_bytes(b"half of a longer text")
    write_atomically(file, b"whole")
    assert (file.read_bytes(), left.exists()) == (b"whole", False)
