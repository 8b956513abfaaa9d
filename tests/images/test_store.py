import hashlib
import multiprocessing
import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.images import sparse, workplace
from nexus.images.errors import StoreError
from nexus.images.store import Store

MIB = 1 << 20
PIECES = st.lists(
    st.tuples(st.integers(0, 8 * MIB), st.binary(min_size=1, max_size=70_000)), max_size=6
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def blocks(path: Path) -> int:
    return path.stat().st_blocks


@settings(max_examples=40, deadline=None)
@given(pieces=PIECES, tail=st.integers(0, 3 * MIB))
def test_a_sparse_file_comes_out_equal_and_no_bigger(
    pieces: list[tuple[int, bytes]], tail: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source"
        with source.open("wb") as file:
            for at, data in pieces:
                file.seek(at)
                file.write(data)
            file.truncate(max([at + len(data) for at, data in pieces], default=0) + tail)
            os.fsync(file.fileno())
        store = Store(folder / "store")

        blob = store.import_file(source)
        store.clone(blob.sha256, folder / "disk")

        content = source.read_bytes()
        assert blob.sha256 == sha256(content)
        assert blob.size_bytes == len(content)
        assert store.path(blob.sha256).read_bytes() == content
        assert (folder / "disk").read_bytes() == content
        assert blocks(folder / "disk") <= blocks(source)


def test_a_blob_is_read_only_and_its_clone_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "image").write_bytes(b"kernel")
    blob = store.import_file(tmp_path / "image")
    store.clone(blob.sha256, tmp_path / "disk")
    store.link(blob.sha256, tmp_path / "kernel")

    assert store.path(blob.sha256).stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "kernel").samefile(store.path(blob.sha256))
    (tmp_path / "disk").write_bytes(b"changed")
    assert store.path(blob.sha256).read_bytes() == b"kernel"


def test_importing_twice_keeps_one_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "image").write_bytes(b"x" * 5000)
    first = store.import_file(tmp_path / "image")
    inode = store.path(first.sha256).stat().st_ino

    assert store.import_file(tmp_path / "image") == first
    assert store.path(first.sha256).stat().st_ino == inode
    assert names(tmp_path / "store" / "sha256") == [first.sha256]


def test_many_importers_at_once_agree(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(os.urandom(MIB))
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(lambda: Store(tmp_path / "store").import_file(tmp_path / "image"))
            for _ in range(24)
        ]
        found = {job.result() for job in jobs}
    assert len(found) == 1
    assert names(tmp_path / "store" / "sha256") == [next(iter(found)).sha256]


def test_an_open_descriptor_is_used_and_stays_open(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "image").write_bytes(b"first")
    descriptor = os.open(tmp_path / "image", os.O_RDONLY)
    (tmp_path / "image").unlink()
    try:
        assert store.import_file(descriptor).sha256 == sha256(b"first")
        os.fstat(descriptor)
    finally:
        os.close(descriptor)


def test_symbolic_links_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "store", "missing"):
        with pytest.raises(StoreError) as caught:
            store.import_file(tmp_path / name)
        assert caught.value.suggestion
    assert names(tmp_path / "store" / "sha256") == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_paths_come_only_from_hashes(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="sha256"):
        Store(tmp_path).path(name)


def test_what_is_missing_is_named_and_removing_it_is_fine(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for take in (store.clone, store.link):
        with pytest.raises(StoreError, match="0000"):
            take("0" * 64, tmp_path / "disk")
    assert not (tmp_path / "disk").exists()
    store.remove("0" * 64)


def test_what_is_set_aside_is_gone_at_once_and_cleared_later(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "image").write_bytes(b"kernel")
    blob = store.import_file(tmp_path / "image")
    store.link(blob.sha256, tmp_path / "kernel")

    aside = store.set_aside(blob.sha256)
    assert (store.has(blob.sha256), store.held()) == (False, [])
    assert aside.exists()
    with pytest.raises(StoreError):
        store.link(blob.sha256, tmp_path / "late")
    assert store.set_aside(blob.sha256) == aside, "setting it aside twice is fine"

    store.import_file(tmp_path / "image")
    again = Store(tmp_path / "store")
    assert names(tmp_path / "store" / "sha256") == [blob.sha256]
    assert again.has(blob.sha256)
    assert (tmp_path / "kernel").read_bytes() == b"kernel"


def test_progress_ends_at_one(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(3 * MIB))
    seen: list[float] = []
    Store(tmp_path / "store").import_file(
        tmp_path / "image", progress=lambda share, _step: seen.append(share)
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def _hold_a_file(folder: str, ready: "multiprocessing.connection.Connection") -> None:
    with workplace.file(Path(folder)):
        ready.send(True)
        signal.pause()


def test_what_a_killed_import_left_is_cleared_and_a_living_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "sha256"
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=_hold_a_file, args=(str(folder), there))
    other.start()
    try:
        assert here.poll(60)
        Store(tmp_path / "store")
        assert len(names(folder)) == 1
    finally:
        other.kill()
        other.join()
    Store(tmp_path / "store")
    assert names(folder) == []


def test_a_hole_at_the_end_stays_a_hole(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write(b"x")
        file.truncate(64 * MIB)
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("wb") as dest:
        sparse.copy(source.fileno(), dest.fileno())
    assert (tmp_path / "b").stat().st_size == 64 * MIB
    assert blocks(tmp_path / "b") < 64
