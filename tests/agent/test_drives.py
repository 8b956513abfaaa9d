"""The files under drives: made once, kept, grown; the root with its file system."""

import os
import subprocess
from pathlib import Path

import pytest

from nexus.agent import disks, drives
from nexus.agent.layout import drive_file
from nexus.api.machines import Blob, MachineDrive
from nexus.images import ext4
from nexus.images.errors import BuildError
from nexus.images.store import Store

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def image(tmp_path: Path, store: Store) -> Blob:
    """An ext4 file system of 16 MiB, in the store."""
    file = tmp_path / "image"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(file), "16M"], check=True)
    stored = store.import_file(file)
    return Blob(sha256=stored.sha256, size_bytes=stored.size_bytes)


def test_a_root_grows_with_its_file_system_and_never_shrinks(
    store: Store, root: Path, image: Blob
) -> None:
    disk = root / "rootfs.ext4"
    drives.ensure_root(image, None, root, store, None)
    assert (disk.stat().st_size, ext4.size_of(disk)) == (16 * MIB, 16 * MIB)
    for size_mib, expected in ((64, 64), (256, 256), (32, 256), (None, 256)):
        drives.ensure_root(image, size_mib, root, store, None)
        assert disk.stat().st_size == expected * MIB
        assert ext4.fills(disk, expected * MIB)
        subprocess.run(["e2fsck", "-fn", str(disk)], check=True, capture_output=True)
    assert os.listdir(root) == ["rootfs.ext4"]  # noqa: PTH208


def test_growing_that_was_cut_off_begins_again(store: Store, root: Path, image: Blob) -> None:
    (root / ".rootfs.ext4.new").write_bytes(b"half a disk")
    drives.ensure_root(image, 64, root, store, None)
    assert ext4.fills(root / "rootfs.ext4", 64 * MIB)


def test_a_guests_broken_root_stays_its_own(store: Store, root: Path, image: Blob) -> None:
    disk = root / "rootfs.ext4"
    drives.ensure_root(image, None, root, store, None)
    with disk.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8 * MIB))
    broken = disk.read_bytes()
    drives.ensure_root(image, 64, root, store, None)
    assert disk.stat().st_size == 64 * MIB
    assert disk.read_bytes()[: len(broken)] == broken


def test_an_image_that_cannot_grow_is_told(store: Store, root: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(bad), "16M"], check=True)
    with bad.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8 * MIB))
    stored = store.import_file(bad)
    blob = Blob(sha256=stored.sha256, size_bytes=stored.size_bytes)
    with pytest.raises(BuildError):
        drives.ensure_root(blob, 64, root, store, None)
    assert not (root / "rootfs.ext4").exists()


def test_drives_are_empty_or_copies_or_links(store: Store, root: Path, image: Blob) -> None:
    empty = MachineDrive(name="empty", size_mib=8, blob=None, read_only=False)
    copy = MachineDrive(name="copy", size_mib=32, blob=image, read_only=False)
    linked = MachineDrive(name="linked", size_mib=None, blob=image, read_only=True)
    for drive in (empty, copy, linked):
        drives.ensure_drive(drive, root, store, None)
        drives.ensure_drive(drive, root, store, None)
    assert (root / drive_file("empty")).stat().st_blocks == 0
    assert (root / drive_file("copy")).stat().st_size == 32 * MIB
    assert ext4.size_of(root / drive_file("copy")) == 16 * MIB
    assert (root / drive_file("linked")).stat().st_ino == store.path(image.sha256).stat().st_ino
    (root / drive_file("empty")).write_bytes(b"mine")
    drives.ensure_drive(empty, root, store, None)
    assert (root / drive_file("empty")).read_bytes()[:4] == b"mine"


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a" * 17, "a\n", "rootfs.ext4"])
def test_no_file_for_a_hostile_name(name: str) -> None:
    with pytest.raises(ValueError, match="not a drive's name"):
        drive_file(name)


def test_a_link_in_the_place_of_a_disk_leads_nowhere(
    store: Store, root: Path, image: Blob, tmp_path: Path
) -> None:
    victim, disk = tmp_path / "victim", root / "rootfs.ext4"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(victim), "16M"], check=True)
    before = victim.stat()
    disk.symlink_to(victim)
    with pytest.raises(OSError):
        drives.grow_file(disk, 64)
    with pytest.raises(OSError):
        drives.ensure_root(image, 64, root, store, None)
    drives.own(disk, 1234)
    assert victim.stat() == before
    assert disk.lstat().st_uid == 1234
    os.mkfifo(root / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        drives.grow_file(root / "pipe", 64)


def test_a_tree_goes_without_what_its_links_lead_to(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (root / "deep" / "deeper").mkdir(parents=True)
    (root / "deep" / "deeper" / "file").touch()
    (root / "deep" / "link").symlink_to(outside)
    os.mkfifo(root / "pipe")
    (tmp_path / "top").symlink_to(outside)
    for tree in (root, tmp_path / "top", root / "gone"):
        disks.remove_tree(tree)
        assert not os.path.lexists(tree)
    assert (outside / "kept").exists()


def test_a_folder_that_becomes_a_link_while_its_tree_is_removed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, folder = tmp_path / "outside", root / "folder"
    for place in (outside, folder):
        place.mkdir()
        (place / "kept").touch()
    list_folder = os.listdir

    def list_and_swap(place: int) -> list[str]:
        names = list_folder(place)
        if names == ["kept"]:
            folder.rename(tmp_path / "aside")
            folder.symlink_to(outside)
        return names

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", list_and_swap)
        with pytest.raises(NotADirectoryError):
            disks.remove_tree(root)
    assert (outside / "kept").exists()
    disks.remove_tree(root)
    assert (root.exists(), (outside / "kept").exists()) == (False, True)
