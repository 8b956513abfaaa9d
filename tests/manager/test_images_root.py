"""Files that users name: only regular files under the image root, whatever the path pretends."""

import os
import socket
from pathlib import Path

import pytest

from nexus.api.errors import NexusError, NotFound, PathRefused, ValidationFailed
from nexus.manager.image_root import open_under


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret").write_text("secret")
    return place


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    place = tmp_path / "images"
    (place / "sub").mkdir(parents=True)
    (place / "disk").write_text("disk")
    (place / "sub" / "inner").write_text("inner")
    (place / "empty").touch()
    (place / "out").symlink_to(outside / "secret")
    (place / "outdir").symlink_to(outside)
    (place / "up").symlink_to("../outside/secret")
    (place / "magic").symlink_to("/proc/self/root")
    (place / "loop").symlink_to("loop")
    (place / "near").symlink_to("sub/inner")
    (place / "home").symlink_to(place / "sub" / "inner")
    os.mkfifo(place / "fifo")
    os.mkfifo(place / "sub" / "fifo")
    return place


def content(root: Path, given: str) -> bytes:
    with open_under(root, given) as descriptor:
        return os.read(descriptor, 100)


@pytest.mark.parametrize("given", ["disk", "./disk", "sub/inner", "sub//inner", "near", "home"])
def test_files_under_the_root_open(root: Path, given: str) -> None:
    assert content(root, given) == (root / given).read_bytes()
    assert content(root, str(root / given)) == (root / given).read_bytes()


def test_the_root_may_itself_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert content(tmp_path / "link", "disk") == b"disk"
    assert content(tmp_path / "link", str(tmp_path / "link" / "disk")) == b"disk"
    assert content(tmp_path / "link", str(root / "disk")) == b"disk"


@pytest.mark.parametrize(
    "given",
    [
        "/etc/passwd",
        "//etc/passwd",
        "../outside/secret",
        "sub/../../outside/secret",
        "sub/../disk",
        "out",
        "outdir/secret",
        "up",
        "magic/etc/passwd",
        "/proc/self/root/etc/passwd",
        "/proc/self/cwd",
        "/dev/zero",
        "/dev/stdin",
        "loop",
        "sub",
        ".",
        "",
        "/",
        "fifo",
        "sub/fifo",
        "{root}",
        "{root}/",
        "{root}x/disk",
        "{root}/../outside/secret",
        "{root}/out",
        "/proc/self/root{root}/disk",
    ],
)
def test_everything_else_is_refused(root: Path, given: str) -> None:
    with pytest.raises((PathRefused, NotFound)) as caught:
        content(root, given.format(root=root))
    if given:
        assert isinstance(caught.value, PathRefused)
    assert str(root) in caught.value.message


def test_a_socket_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        with pytest.raises(PathRefused, match="regular"):
            content(root, "sock")


@pytest.mark.root
def test_a_device_is_refused(root: Path) -> None:
    os.mknod(root / "null", 0o600 | 0o020000, os.makedev(1, 3))
    with pytest.raises(PathRefused, match="regular"):
        content(root, "null")


@pytest.mark.parametrize("given", ["nothing", "sub/nothing", "disk/below", "disk/"])
def test_a_missing_file_is_not_found(root: Path, given: str) -> None:
    with pytest.raises(NotFound, match="no file"):
        content(root, given)


@pytest.mark.parametrize("given", ["empty", "a\x00b", "x" * 300, "x/" * 2047])
def test_impossible_files_are_invalid(root: Path, given: str) -> None:
    with pytest.raises((ValidationFailed, NotFound)):
        content(root, given)


def test_a_directory_swapped_for_a_link_never_leads_out(root: Path, outside: Path) -> None:
    """The race that checks of path texts lose: each open sees either the inside or a refusal."""
    (outside / "inner").write_text("secret")
    (root / "evil").symlink_to(outside)
    (root / "good").mkdir()
    (root / "good" / "inner").write_text("inner")
    seen = set()
    for turn in range(300):
        swapped = (root / "evil", root / "good")[turn % 2]
        swapped.rename(root / "target")
        try:
            seen.add(content(root, "target/inner"))
        except NexusError as error:
            seen.add(type(error).__name__.encode())
        finally:
            (root / "target").rename(swapped)
    assert seen == {b"inner", b"PathRefused"}
