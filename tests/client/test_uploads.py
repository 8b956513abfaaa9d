"""Sending files: whole, in pieces, begun again, and by the command line."""

import hashlib
import os
from pathlib import Path

import pytest

from nexus.api.images import ImageUploadCreate
from nexus.client import AsyncClient, Client, NexusApiError, NotFoundError
from nexus.client import uploads as sending
from tests.cli.calling import call, done, done_json
from tests.client.wire import TOKEN, Wire

SIZE = 3 * sending.BLOCK_BYTES + 5


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PAUSES_S", (0.01,) * 4)


def check_arrived(wire: Wire, disk: Path) -> None:
    content = disk.read_bytes()
    assert wire.uploaded == content
    assert wire.sha256 == hashlib.sha256(content).hexdigest()
    assert wire.upload is None


def test_a_file_is_sent_and_its_progress_told(client: Client, wire: Wire, disk: Path) -> None:
    told: list[tuple[int, int]] = []
    image = client.images.upload(
        disk, name="debian:12", progress=lambda done, total: told.append((done, total))
    )
    assert (image.name, image.kind) == ("debian:12", "rootfs")
    check_arrived(wire, disk)
    assert told[-1] == (SIZE, SIZE)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    (body,) = wire.bodies
    assert body == {"kind": "rootfs", "name": "debian:12", "size_bytes": SIZE, "format": None}


def test_it_goes_on_where_it_broke_off(client: Client, wire: Wire, disk: Path) -> None:
    wire.takes = [0, 1, 70_000, 0, sending.BLOCK_BYTES + 1]
    client.images.upload(disk, name="x", kind="initrd")
    check_arrived(wire, disk)
    assert wire.images[-1].kind == "initrd"


def test_it_ends_when_nothing_is_taken_any_more(client: Client, wire: Wire, disk: Path) -> None:
    wire.takes = [10] + [0] * 50
    with pytest.raises(NexusApiError, match="connection breaks"):
        client.images.upload(disk, name="x")
    upload = next(client.images.uploads())
    assert len(wire.uploaded) == 10
    wire.takes = []
    client.images.upload(disk, name="x", resume=upload.id)
    check_arrived(wire, disk)


def test_another_file_than_before_is_refused(client: Client, wire: Wire, tmp_path: Path) -> None:
    upload = client.images.begin_upload(ImageUploadCreate(kind="rootfs", name="x", size_bytes=9))
    (tmp_path / "other").write_bytes(b"eight ...")
    (tmp_path / "larger").write_bytes(b"more than nine")
    with pytest.raises(NexusApiError, match="of a file of 9 bytes"):
        client.images.upload(tmp_path / "larger", name="x", resume=upload.id)
    client.images.delete_upload(upload.id)
    with pytest.raises(NotFoundError):
        client.images.upload(tmp_path / "other", name="x", resume=upload.id)
    assert wire.uploaded == b""


@pytest.mark.parametrize("name", ["none", "empty", "."])
def test_files_that_cannot_be_sent(client: Client, wire: Wire, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(NexusApiError, match="cannot upload"):
        client.images.upload(tmp_path / name, name="x")
    assert wire.asked == []


@pytest.mark.anyio
async def test_the_async_client_does_the_same(wire: Wire, disk: Path) -> None:
    wire.takes = [0, 70_000, 1]
    async with AsyncClient(wire.url, TOKEN) as client:
        image = await client.images.upload(disk, name="x")
        assert image.name == "x"
        check_arrived(wire, disk)
        begun = await client.images.begin_upload(ImageUploadCreate(kind="kernel", name="k"))
        assert [upload.id async for upload in client.images.uploads()] == [begun.id]
        await client.images.delete_upload(begun.id)
        with pytest.raises(NotFoundError):
            await client.images.get_upload(begun.id)


def test_the_command_shows_progress_and_the_image(wire: Wire, disk: Path) -> None:
    ended = call(wire, "image", "upload", str(disk), "debian:12")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode().strip() == wire.images[-1].id
    assert b"debian:12" in ended.stderr
    check_arrived(wire, disk)


def test_the_command_tells_how_to_go_on(wire: Wire, disk: Path) -> None:
    wire.takes = [5, -1]
    ended = call(wire, "image", "upload", str(disk), "x", "--kind", "initrd")
    assert ended.returncode == 4
    assert wire.upload is not None
    again = f"nexus image upload {disk} x --kind initrd --resume {wire.upload.id}"
    assert again in ended.stderr.decode()
    wire.takes = []
    answer = done_json(wire, "-o", "json", *again.split()[1:])
    assert answer["item"]["name"] == "x"
    check_arrived(wire, disk)


def test_the_command_says_what_is_wrong_with_a_file(wire: Wire, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for file in ("none", "empty"):
        assert call(wire, "image", "upload", str(tmp_path / file), "x").returncode == 2
    (tmp_path / "disk").write_bytes(b"x")
    assert call(wire, "image", "upload", str(tmp_path / "disk"), "Bad Name").returncode == 2
    assert wire.asked == []
    assert done(wire, "image", "upload", str(tmp_path / "disk"), "x", "-o", "name") == "x\n"
