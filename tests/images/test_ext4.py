"""Growing ext4 file systems in files, with the real tools."""

import os
import subprocess
from pathlib import Path

import pytest

from nexus.images import ext4
from nexus.images.errors import BuildError

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file system of 16 MiB with a file in it."""
    content = tmp_path / "content"
    content.mkdir()
    (content / "word").write_text("kept")
    file = tmp_path / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(content), str(file), "16M"], check=True)
    return file


def check(file: Path) -> None:
    subprocess.run(["e2fsck", "-f", "-n", str(file)], check=True, capture_output=True)


@pytest.mark.parametrize("size_mib", [40, 512, 4096])
def test_grows_to_its_file_and_keeps_what_it_holds(disk: Path, size_mib: int) -> None:
    assert ext4.size_of(disk) == 16 * MIB
    assert ext4.fills(disk, 16 * MIB)
    os.truncate(disk, size_mib * MIB)
    assert not ext4.fills(disk, size_mib * MIB)
    ext4.grow(disk)
    assert ext4.fills(disk, size_mib * MIB)
    check(disk)
    shown = subprocess.run(
        ["debugfs", "-R", "cat word", str(disk)], check=True, capture_output=True, text=True
    )
    assert shown.stdout == "kept"
    before = disk.stat().st_mtime_ns
    ext4.grow(disk)
    assert disk.stat().st_mtime_ns == before


def test_other_content_is_left_alone(tmp_path: Path) -> None:
    for content in (b"", b"\0" * 1024, os.urandom(4096)):
        file = tmp_path / "other"
        file.write_bytes(content)
        assert ext4.size_of(file) is None
        ext4.grow(file)
        assert file.read_bytes() == content


def test_damage_is_told_with_what_to_do(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8 * MIB))
    os.truncate(disk, 64 * MIB)
    with pytest.raises(BuildError, match="e2fsck") as failed:
        ext4.grow(disk)
    assert "inside the guest" in failed.value.suggestion
