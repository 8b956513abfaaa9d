"""Uploads: appended where they are, by one at a time, checked at their end, gone after a day."""

import gzip
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import Connection, event, select
from sqlalchemy.exc import DBAPIError

from nexus.api.errors import Conflict
from nexus.manager.config import Settings
from nexus.manager.db.full import is_full
from nexus.manager.db.journal_tables import AuditRow
from nexus.manager.services import uploads as service
from tests.images import kernels
from tests.manager.core import Manager, running, settings_for

pytestmark = pytest.mark.anyio

CONTENT = os.urandom(3 << 20)
PATH = "/v1/images/uploads"
OCTETS = "application/octet-stream"


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> Settings:
    none = f"unix:{tmp_path / 'none.sock'}"
    return settings_for(tmp_path, sqlite_url, none, MANAGER_IMAGE_MAX_MIB="8")


@pytest.fixture
async def manager(settings: Settings) -> AsyncIterator[Manager]:
    async with running(settings, ready=False) as made:
        yield made


async def begin(manager: Manager, **fields: Any) -> str:
    answer = await manager.http.post(PATH, json={"kind": "rootfs", "name": "disk", **fields})
    assert answer.status_code == 201, answer.text
    assert answer.json()["item"]["offset"] == 0
    return str(answer.json()["id"])


async def write(
    manager: Manager,
    upload_id: str,
    offset: int | str,
    content: bytes | AsyncIterator[bytes],
    kind: str = OCTETS,
) -> httpx.Response:
    headers = {"upload-offset": str(offset), "content-type": kind}
    return await manager.http.patch(f"{PATH}/{upload_id}", content=content, headers=headers)


async def complete(manager: Manager, upload_id: str, **fields: Any) -> httpx.Response:
    return await manager.http.post(f"{PATH}/{upload_id}/complete", json=fields)


def parts(settings: Settings) -> list[str]:
    folder = settings.store_dir / "uploads"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def test_pieces_become_an_image(manager: Manager, settings: Settings) -> None:
    upload = await begin(manager, size_bytes=len(CONTENT), name="debian:12")
    at = 0
    for size in (1, 65_536, 1_500_000, len(CONTENT)):
        piece = CONTENT[at : at + size]
        answer = await write(manager, upload, at, piece)
        assert answer.status_code == 200, answer.text
        at += len(piece)
        assert answer.headers["upload-offset"] == str(at)
        seen = await manager.http.get(f"{PATH}/{upload}")
        assert (seen.json()["item"]["offset"], seen.headers["upload-offset"]) == (at, str(at))
    answer = await complete(manager, upload, sha256=sha256(CONTENT))
    assert answer.status_code == 201, answer.text
    image = answer.json()["item"]
    assert (image["sha256"], image["size_bytes"]) == (sha256(CONTENT), len(CONTENT))
    assert (image["name"], image["source"]) == ("debian:12", "upload")
    assert (await manager.http.get("/v1/images/debian:12")).json()["item"] == image
    assert (await manager.http.get(f"{PATH}/{upload}")).status_code == 404
    assert parts(settings) == []
    async with manager.runtime.db.read() as session:
        actions = list(await session.scalars(select(AuditRow.action).order_by(AuditRow.id)))
    actions = [action for action in actions if action != "token.bootstrap"]
    assert actions == ["image_upload.create", *["image_upload.write"] * 4, "image.create"]


async def test_a_compressed_upload_is_unpacked_and_checked(manager: Manager) -> None:
    packed = gzip.compress(kernels.elf())
    upload = await begin(manager, kind="kernel", format="gzip", sha256=sha256(packed))
    await write(manager, upload, 0, packed)
    answer = await complete(manager, upload)
    assert answer.json()["item"]["sha256"] == sha256(kernels.elf())


async def test_another_offset_is_refused_and_told(manager: Manager) -> None:
    upload = await begin(manager)
    await write(manager, upload, 0, b"start")
    for offset in (0, 1, 4, 6, 2**50):
        answer = await write(manager, upload, offset, b"more")
        assert answer.status_code == 409
        assert "at 5" in answer.json()["message"]
    assert (await write(manager, upload, 5, b"more")).json()["item"]["offset"] == 9


async def test_what_is_no_offset_or_no_plain_content_is_refused(manager: Manager) -> None:
    upload = await begin(manager)
    for offset in ("", "-1", "x", "1.5", "1e3", str(2**64), "9" * 5000):
        assert (await write(manager, upload, offset, b"x")).status_code == 422
    for kind in ("", "application/json", "text/plain", "multipart/form-data"):
        answer = await write(manager, upload, 0, b'{"a": 1}', kind)
        assert (answer.status_code, answer.json()["error"]) == (415, "unsupported_media_type")
    assert (await manager.http.get(f"{PATH}/{upload}")).json()["item"]["offset"] == 0


async def test_one_request_writes_at_a_time(manager: Manager) -> None:
    """Two that begin at the same offset: one is refused, and no byte of it is kept."""
    upload = await begin(manager)
    begun, go_on = anyio.Event(), anyio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"slow"
        begun.set()
        await go_on.wait()
        yield b" but first"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, manager, upload, 0, slow())
        await begun.wait()
        answer = await write(manager, upload, 0, b"fast")
        assert answer.status_code == 409
        assert "at work" in answer.json()["message"]
        assert (await complete(manager, upload)).status_code == 409
        go_on.set()
    held = manager.runtime.settings.store_dir / "uploads" / upload
    assert held.read_bytes() == b"slow but first"


async def test_a_silent_sender_gives_way(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "IDLE_TIMEOUT_S", 0.05)
    upload = await begin(manager)

    async def silent() -> AsyncIterator[bytes]:
        yield b"word"
        await anyio.sleep_forever()

    with anyio.fail_after(30):
        answer = await write(manager, upload, 0, silent())
    assert answer.json()["item"]["offset"] == 4
    assert (await write(manager, upload, 4, b"!")).status_code == 200


async def test_uploads_end_at_their_size_and_at_the_limit(manager: Manager) -> None:
    small = await begin(manager, size_bytes=4)
    assert (await write(manager, small, 0, b"12345")).status_code == 413
    assert (await complete(manager, small)).status_code == 409
    assert (await write(manager, small, 0, b"1234")).status_code == 200
    large = await begin(manager, name="large")
    answer = await write(manager, large, 0, bytes((8 << 20) + 1))
    assert (answer.status_code, answer.json()["error"]) == (413, "payload_too_large")
    body = {"kind": "rootfs", "name": "x", "size_bytes": (8 << 20) + 1}
    assert (await manager.http.post(PATH, json=body)).status_code == 413


async def test_missing_bytes_and_wrong_hashes_make_no_image(manager: Manager) -> None:
    upload = await begin(manager, size_bytes=8)
    for offset in (0, 4):
        answer = await complete(manager, upload)
        assert (answer.status_code, answer.json()["error"]) == (409, "invalid_state")
        assert f"from byte {offset} on" in answer.json()["suggestion"]
        assert (await write(manager, upload, offset, b"half")).status_code == 200
    answer = await complete(manager, upload, sha256="0" * 64)
    assert (answer.status_code, answer.json()["error"]) == (422, "validation_failed")
    said = await begin(manager, name="said", sha256=sha256(b"that"))
    await write(manager, said, 0, b"this")
    for fields in ({}, {"sha256": sha256(b"this")}, {"sha256": sha256(b"that")}):
        assert (await complete(manager, said, **fields)).status_code == 422
    assert (await manager.http.get("/v1/images")).json()["items"] == []
    assert (await complete(manager, upload, sha256=sha256(b"halfhalf"))).status_code == 201


async def test_a_refused_image_leaves_the_upload(manager: Manager) -> None:
    upload = await begin(manager, kind="kernel")
    await write(manager, upload, 0, b"no kernel at all")
    answer = await complete(manager, upload)
    assert answer.status_code == 422
    assert "neither" in answer.json()["message"]
    assert (await manager.http.get(f"{PATH}/{upload}")).json()["item"]["offset"] == 16


async def test_names_are_decided_at_both_ends(manager: Manager) -> None:
    first, second = await begin(manager), await begin(manager)
    for upload in (first, second):
        await write(manager, upload, 0, upload.encode())
    assert (await complete(manager, first)).status_code == 201
    answer = await complete(manager, second)
    assert (answer.status_code, answer.json()["error"]) == (409, "name_taken")
    body = {"kind": "rootfs", "name": "disk"}
    assert (await manager.http.post(PATH, json=body)).json()["error"] == "name_taken"
    for name in ("builds", "uploads", "Disk", "../x", ""):
        assert (await manager.http.post(PATH, json=body | {"name": name})).status_code == 422


async def test_completing_twice_makes_one_image(manager: Manager) -> None:
    upload = await begin(manager)
    await write(manager, upload, 0, b"disk")
    statuses: list[int] = []

    async def attempt() -> None:
        statuses.append((await complete(manager, upload)).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(attempt)
    assert min(statuses) == 201
    assert set(sorted(statuses)[1:]) <= {404, 409}
    assert len((await manager.http.get("/v1/images")).json()["items"]) == 1


async def test_deleted_uploads_leave_nothing(manager: Manager, settings: Settings) -> None:
    upload = await begin(manager)
    await write(manager, upload, 0, b"disk")
    assert parts(settings) == [upload]
    assert (await manager.http.delete(f"{PATH}/{upload}")).json() == {"ok": True}
    assert parts(settings) == []
    for answer in (
        await manager.http.delete(f"{PATH}/{upload}"),
        await manager.http.get(f"{PATH}/{upload}"),
        await write(manager, upload, 4, b"more"),
        await complete(manager, upload),
    ):
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert parts(settings) == []


async def test_uploads_are_listed_and_bounded(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_OPEN", 3)
    made = [await begin(manager, name=f"disk-{number}") for number in range(3)]
    first = (await manager.http.get(f"{PATH}?limit=2")).json()
    rest = (await manager.http.get(f"{PATH}?cursor={first['next_cursor']}")).json()
    assert [item["id"] for item in first["items"] + rest["items"]] == made
    body = {"kind": "rootfs", "name": "one-more"}
    answer = await manager.http.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
    await manager.http.delete(f"{PATH}/{made[0]}")
    await begin(manager, name="one-more")


async def test_uploads_expire_a_day_after_their_last_byte(
    manager: Manager, settings: Settings
) -> None:
    old, fresh, silent = [await begin(manager, name=f"disk-{number}") for number in range(3)]
    await write(manager, old, 0, b"disk")
    await write(manager, fresh, 0, b"disk")
    later = datetime.now(UTC) + service.KEPT - timedelta(minutes=1)
    os.utime(settings.store_dir / "uploads" / fresh, (later.timestamp(),) * 2)
    for name in ("stray", "young"):
        (settings.store_dir / "uploads" / name).write_bytes(b"of no upload")
    os.utime(settings.store_dir / "uploads" / "young", (later.timestamp(),) * 2)
    uploads = manager.runtime.uploads
    assert await uploads.sweep(later) == 0
    with uploads.files.locked(old):
        await uploads.sweep(later + timedelta(minutes=2))
        assert old in parts(settings), "somebody is at work on it"
    assert await uploads.sweep(later + timedelta(minutes=2)) == 1
    assert parts(settings) == sorted([fresh, "young"])
    listed = (await manager.http.get(PATH)).json()["items"]
    assert [item["id"] for item in listed] == [fresh]
    assert silent not in parts(settings)


async def test_an_upload_outlives_the_manager(settings: Settings) -> None:
    async with running(settings, ready=False) as manager:
        upload = await begin(manager)
        await write(manager, upload, 0, b"first")
    async with running(settings, ready=False) as manager:
        assert (await write(manager, upload, 5, b" second")).json()["item"]["offset"] == 12
        answer = await complete(manager, upload, sha256=sha256(b"first second"))
        assert answer.status_code == 201


async def test_a_full_disk_is_said_and_the_upload_stays(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begin(manager)
    await write(manager, upload, 0, b"disk")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nexus.manager.upload_files.write_sparse", full)
        answer = await write(manager, upload, 4, b"more")
    assert (answer.status_code, answer.json()["error"]) == (409, "no_capacity")
    assert (await write(manager, upload, 4, b"more")).json()["item"]["offset"] == 8
    monkeypatch.setattr(type(manager.runtime.uploads.files), "free_bytes", lambda _: 3)
    body = {"kind": "rootfs", "name": "x", "size_bytes": 4}
    assert (await manager.http.post(PATH, json=body)).json()["error"] == "no_capacity"


async def test_the_lock_is_let_go_however_a_request_ends(manager: Manager) -> None:
    files = manager.runtime.uploads.files
    with files.locked("x"), pytest.raises(Conflict), files.locked("x"):
        pass
    with files.locked("x") as file:
        assert file.offset == 0


async def test_a_full_database_says_what_to_do_and_uploads_still_give_back_room(
    manager: Manager,
) -> None:
    upload = await begin(manager)
    await write(manager, upload, 0, b"disk")

    def no_more_pages(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # no more than there are

    event.listen(manager.runtime.db.engine.sync_engine, "begin", no_more_pages)
    answer = None
    for number in range(50):
        body = {"kind": "rootfs", "name": f"more-{number}"}
        answer = await manager.http.post(PATH, json=body)
        if answer.status_code != 201:
            break
    assert answer is not None
    assert (answer.status_code, answer.json()["error"]) == (409, "no_capacity")
    assert "database is full" in answer.json()["message"]
    await manager.http.delete(f"{PATH}/{upload}")
    assert manager.runtime.uploads.files.names() == []


def test_a_full_disk_of_postgresql_is_known_by_its_code() -> None:
    told = Exception("could not extend file")
    told.sqlstate = "53100"  # type: ignore[attr-defined]
    assert is_full(DBAPIError("", {}, told))
    assert not is_full(DBAPIError("", {}, Exception("something else")))
