"""Container images by way of the API: only from beneath the image root, built to the end."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nexus.api.errors import NexusError, PathRefused, ValidationFailed
from nexus.manager import oci_sources
from nexus.manager.config import Settings
from tests.images import oci_images
from tests.manager.core import Manager, running, settings_for, until
from tests.parts import CACHE

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> Settings:
    (tmp_path / "images").mkdir()
    return settings_for(tmp_path, sqlite_url, f"unix:{tmp_path / 'none.sock'}")


@pytest.fixture
async def manager(settings: Settings) -> AsyncIterator[Manager]:
    async with running(settings, ready=False) as made:
        yield made


@pytest.fixture
def layout(settings: Settings) -> Path:
    return oci_images.app(settings.image_root / "app")


async def build(manager: Manager, source: Any) -> Any:
    body = {"recipe": "oci", "name": "app:1.0", "source": source}
    return await manager.http.post("/v1/images/builds", json=body)


@pytest.mark.root
async def test_a_layout_becomes_an_image(
    manager: Manager, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_CACHE_DIR", str(CACHE / "packages"))
    answer = await build(manager, "oci:app:latest")
    assert answer.status_code == 201, answer.text
    path = f"/v1/images/builds/{answer.json()['id']}"

    async def ended() -> dict[str, Any] | None:
        item: dict[str, Any] = (await manager.http.get(path)).json()["item"]
        return item if item["state"] not in ("queued", "running") else None

    item = await until("the build ends", ended, timeout_s=120)
    assert item["state"] == "succeeded", item["error"]
    image = (await manager.http.get("/v1/images/app:1.0")).json()["item"]
    assert [image["id"]] == item["images"]
    assert (image["kind"], image["source"]) == ("rootfs", "oci:app:latest")
    assert manager.runtime.images.store.has(image["sha256"])


async def test_no_source_leads_out_of_the_root(
    manager: Manager, settings: Settings, layout: Path
) -> None:
    root = settings.image_root
    (root / "out").symlink_to("/etc")
    (root / "secret").symlink_to("/etc/passwd")
    (root / "linked").mkdir()
    (root / "linked" / "index.json").symlink_to("/etc/passwd")
    sources = [
        f"{transport}:{path}"
        for transport in ("oci", "oci-archive", "docker-archive")
        for path in (
            "..", "../app", "/etc", "/etc/passwd", "out", "secret", "linked", "/proc/self/root",
            "/proc/self/root/etc/passwd", "/dev/zero", "none", "app/..", "app/../../etc", ".", "/",
        )
    ]  # fmt: skip
    for source in sources:
        answer = await build(manager, source)
        assert answer.status_code in (403, 404), (source, answer.text)
    for source in (
        "", "app", "dir:/etc", "docker-daemon:x", "containers-storage:x", "ostree:x", "oci", "oci:",
        "oci:a b", "oci:a\nb", "oci:a\x00", "docker:x", "-oci:app", "OCI:app", " oci:app",
        "oci:" + "x" * 2000, 1, None, [], {}, "atomic:x", "sif:/etc/passwd", "tarball:/etc/passwd",
    ):  # fmt: skip
        assert (await build(manager, source)).status_code in (400, 422), source
    assert (await manager.http.get("/v1/images/builds")).json()["items"] == []


def test_only_what_manifests_name_is_copied(
    settings: Settings, layout: Path, tmp_path: Path
) -> None:
    (layout / "blobs" / "sha256" / ("0" * 64)).write_text("not named")
    (layout / "more").write_text("not named")
    given = oci_sources.stage(settings, "oci:app:latest", tmp_path)
    assert given == f"oci:{tmp_path / 'source'}:latest"
    copied = {p.relative_to(tmp_path / "source") for p in (tmp_path / "source").rglob("*")}
    own = {p.relative_to(layout) for p in layout.rglob("*")}
    assert own - copied == {Path("more"), Path("blobs/sha256") / ("0" * 64)}
    (settings.image_root / "archive").write_bytes(b"archive")
    (tmp_path / "again").mkdir()
    given = oci_sources.stage(settings, "docker-archive:archive:a/b:1", tmp_path / "again")
    assert given == f"docker-archive:{tmp_path / 'again' / 'source'}:a/b:1"
    assert (tmp_path / "again" / "source").read_bytes() == b"archive"
    assert oci_sources.stage(settings, "docker://reg:5/x:1", tmp_path) == "docker://reg:5/x:1"


def test_a_blob_that_is_a_link_out_is_refused(
    settings: Settings, layout: Path, tmp_path: Path
) -> None:
    blob = max((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.unlink()
    blob.symlink_to("/etc/shadow")
    with pytest.raises(PathRefused):
        oci_sources.stage(settings, "oci:app:latest", tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "", "{", "[]", "null", "1", '"x"', "[" * 100_000, '{"manifests": [1]}',
        '{"manifests": [{}]}', '{"manifests": [{"digest": 1}]}',
        '{"manifests": [{"digest": "sha256:../../../../etc/passwd"}]}',
        '{"manifests": [{"digest": "md5:d41d8cd98f00b204e9800998ecf8427e"}]}',
        json.dumps({"manifests": [{"digest": f"sha256:{'A' * 64}"}]}),
        json.dumps({"manifests": [{"digest": f"sha256:{'a' * 64}\n"}]}),
        json.dumps({"manifests": [{"digest": f"sha256:{'a' * 64}"}]}),
        json.dumps({"layers": [{"digest": f"sha256:{n:064x}"} for n in range(3000)]}),
    ],
)  # fmt: skip
def test_a_layout_that_is_none_is_refused(settings: Settings, tmp_path: Path, index: str) -> None:
    place = settings.image_root / "bad"
    place.mkdir()
    (place / "oci-layout").write_text("{}")
    (place / "index.json").write_text(index)
    (tmp_path / "copy").mkdir()
    with pytest.raises(NexusError) as caught:
        oci_sources.stage(settings, "oci:bad", tmp_path / "copy")
    assert caught.value.status in (404, 422)
    assert caught.value.suggestion


def test_a_manifest_that_names_itself_ends(settings: Settings, tmp_path: Path) -> None:
    """No file can name its own hash, but nobody has checked that these do not."""
    place = settings.image_root / "loop"
    (place / "blobs" / "sha256").mkdir(parents=True)
    named = json.dumps({"manifests": [{"digest": f"sha256:{'a' * 64}"}]})
    (place / "oci-layout").write_text("{}")
    (place / "index.json").write_text(named)
    (place / "blobs" / "sha256" / ("a" * 64)).write_text(named)
    oci_sources.stage(settings, "oci:loop", tmp_path)
    large = place / "blobs" / "sha256" / ("a" * 64)
    large.write_bytes(b" " * (5 << 20))
    (tmp_path / "again").mkdir()
    with pytest.raises(ValidationFailed, match="too large"):
        oci_sources.stage(settings, "oci:loop", tmp_path / "again")
