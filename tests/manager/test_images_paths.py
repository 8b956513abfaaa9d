"""Hostile paths through the API: whatever is given, only files under the image root are read."""

import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from nexus.api.errors import NotFound, PathRefused
from nexus.api.images import ImageCreate
from nexus.images.store import Fill
from nexus.manager.config import Settings
from nexus.manager.services.images import Images
from nexus.manager.uow import Caller
from tests.manager.core import Manager, running, settings_for

pytestmark = pytest.mark.anyio

INSIDE = b"inside the root " * 64
SECRET = b"outside the root " * 64
CALLER = Caller(actor="admin", project="default", request_id="r", permission="images:write")

REFUSED = {
    # Out of the root by name.
    "/etc/passwd", "//etc/passwd", "/etc//passwd", "/etc/./passwd", "/./etc/passwd", "{outside}",
    "//{outside}", "/", "//", "/.", "/var", "/etc", "{root}x/disk", "{root}/..",
    # Out of the root by climbing.
    "..", "../", "../outside/secret", "../../../../../../../../etc/passwd", "sub/..",
    "sub/../disk", "sub/../../outside/secret", "./../outside/secret", "disk/..", "disk/../disk",
    "{root}/../outside/secret", "{root}/sub/../../outside/secret", "sub/../../images/disk",
    # Out of the root by links.
    "out", "./out", "sub/out", "{root}/out", "outdir/secret", "outdir/../outside/secret", "up",
    "chain", "long", "absolute", "etc/passwd", "{root}/etc/passwd", "back",
    # Magic links and the kernel's own file systems.
    "/proc/self/root/etc/passwd", "/proc/self/root{root}/disk", "/proc/self/cwd/disk",
    "/proc/self/environ", "/proc/self/mem", "/proc/self/maps", "/proc/self/fd/0", "/proc/self/exe",
    "/proc/1/root/etc/shadow", "/proc/thread-self/root/etc/passwd", "/proc/kcore", "/sys/kernel",
    "/sys/kernel/notes", "/dev/mem", "/dev/zero", "/dev/stdin", "/dev/fd/0", "/dev/vda",
    "/dev/pts", "magic/etc/passwd", "magicfd", "magicfd0", "magicexe", "magiccwd/pyproject.toml",
    # Not regular files.
    ".", "./", "sub", "sub/", "sub/.", "{root}", "{root}/", "{root}/.", "fifo", "sub/fifo",
    "tofifo", "sock", "tosock", "loop", "loopa", "dir-of-links", "", "{root}//",
}  # fmt: skip
"""Answers 403, and where the path is not there at all, 404 or 422."""

ABSENT = {
    "none", "sub/none", "disk/below", "disk/.", "disk/", "dangling", "Disk", "disk ", " disk",
    "disk\n", "disk\t", "disk;id", "$(id)", "`id`", "~", "~/disk", "~root/.bashrc", "*", "di?k",
    "file:///etc/passwd", "http://127.0.0.1/", "data:,x", "\\etc\\passwd", "..\\disk",
    "%2e%2e/outside/secret", "..%2foutside%2fsecret", "%2fetc%2fpasswd", "。。/disk",
    "‥/outside", "․․/outside/secret", "disk\u200b", "\u202edisk", "proc/self/root\u200b",
    "sub\\..\\..", "x" * 256, "x" * 4096, "x/" * 2000, "sub/" * 1000 + "disk", "\x7f", "\x1b[2J",
}  # fmt: skip
"""Names of nothing: 404, or 422 where no file can have that name."""

UNREADABLE = {"empty", "toempty", "a\x00b", "disk\x00", "\x00", "disk\x00.ext4", "x" * 5000}
"""400 or 422."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image root in which every kind of trap is laid."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    place = tmp_path / "images"
    (place / "sub").mkdir(parents=True)
    (place / "disk").write_bytes(INSIDE)
    (place / "empty").touch()
    (outside / "back").symlink_to(place)
    (tmp_path / "imagesx").mkdir()
    (tmp_path / "imagesx" / "disk").write_bytes(SECRET)
    links = {
        "out": outside / "secret", "outdir": outside, "up": "../outside/secret", "chain": "chain2",
        "chain2": "sub/out", "sub/out": "../../outside/secret", "absolute": "/etc/passwd",
        "long": "sub/" + "./" * 1000 + "../../outside/secret", "etc": "/etc",
        "back": "../outside/../outside/secret", "magic": "/proc/self/root",
        "magicfd": "/proc/self/fd", "magicfd0": "/proc/self/fd/0", "magicexe": "/proc/self/exe",
        "magiccwd": "/proc/self/cwd", "tofifo": "fifo", "tosock": "sock", "loop": "loop",
        "loopa": "loopb", "loopb": "loopa", "dangling": "nowhere", "toempty": "empty",
        "dir-of-links": "sub",
    }  # fmt: skip
    for name, target in links.items():
        (place / name).symlink_to(target)
    os.mkfifo(place / "fifo")
    os.mkfifo(place / "sub" / "fifo")
    return place


@pytest.fixture
def listener(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A socket in the root; its own path would be too long to bind to."""
    here = Path.cwd()
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("sock")
        monkeypatch.chdir(here)
        yield


@pytest.fixture
def settings(tmp_path: Path, root: Path, sqlite_url: str) -> Settings:
    return settings_for(tmp_path, sqlite_url, f"unix:{tmp_path / 'none.sock'}")


@pytest.fixture
async def manager(settings: Settings, listener: None) -> AsyncIterator[Manager]:
    async with running(settings, ready=False) as made:
        yield made


async def test_no_path_leads_out_of_the_root(manager: Manager, root: Path) -> None:
    assert len(REFUSED | ABSENT | UNREADABLE) >= 120
    groups = ((REFUSED, {403, 404, 422}), (ABSENT, {404, 422}), (UNREADABLE, {400, 422}))
    wrong = []
    for paths, statuses in groups:
        for path in sorted(paths):
            given = path.replace("{root}", str(root)).replace(
                "{outside}", str(root.parent / "outside" / "secret")
            )
            body = {"kind": "rootfs", "name": "x", "host_path": given}
            with anyio.fail_after(60):
                answer = await manager.http.post("/v1/images", json=body)
            envelope = answer.json()
            if answer.status_code not in statuses or not envelope.get("message"):
                wrong.append((path, answer.status_code, envelope))
    assert wrong == []
    assert (await manager.http.get("/v1/images")).json()["items"] == []
    blobs = manager.runtime.settings.store_dir / "sha256"
    assert list(blobs.iterdir()) == []


async def test_paths_of_the_corpus_that_exist_are_refused_as_paths(
    manager: Manager, root: Path
) -> None:
    """A refusal says ``path_refused``: that something lies there is no secret, what it holds is."""
    for path in ("out", "up", "chain", "outdir/secret", "/etc/passwd", "magic/etc/passwd", "fifo"):
        body = {"kind": "rootfs", "name": "x", "host_path": path}
        answer = await manager.http.post("/v1/images", json=body)
        assert (answer.status_code, answer.json()["error"]) == (403, "path_refused"), path
        assert str(root) in answer.json()["suggestion"]


async def test_a_link_that_comes_back_under_the_root_is_taken(manager: Manager) -> None:
    """What counts is where the path ends, with all links resolved."""
    assert await register(manager.runtime.images, "outdir/back/disk", "x") == "kept"


class Swapping:
    """Puts one of several links in one place, over and over, each by an atomic rename."""

    def __init__(self, place: Path, *targets: Path) -> None:
        self.place = place
        self.targets = targets
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        turn = 0
        spare = self.place.with_name("spare")
        while not self.over.is_set():
            spare.symlink_to(self.targets[turn % len(self.targets)])
            spare.replace(self.place)
            turn += 1

    def __enter__(self) -> None:
        self.place.symlink_to(self.targets[0])
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


@pytest.mark.parametrize("shape", ["file", "folder"])
async def test_a_link_swapped_during_registration_never_leads_out(
    manager: Manager, root: Path, shape: str
) -> None:
    """Between any check and any use the link may point elsewhere; what is kept lay inside."""
    (root / "sub" / "secret").write_bytes(INSIDE)
    outside = root.parent / "outside"
    if shape == "file":
        swapping, given = Swapping(root / "swap", root / "disk", outside / "secret"), "swap"
    else:
        swapping, given = Swapping(root / "swap", root / "sub", outside), "swap/secret"
    images = manager.runtime.images
    seen: set[str] = set()
    with swapping, anyio.fail_after(120):
        while not seen >= {"kept", "PathRefused"}:
            seen.add(await register(images, given, f"image-{len(seen)}"))
    assert seen <= {"kept", "PathRefused", "NotFound"}


async def register(images: Images, given: str, name: str) -> str:
    """Registers and forgets again; says how it ended. What was kept must be from inside."""
    try:
        image = await images.register(
            CALLER, ImageCreate(kind="rootfs", name=name, host_path=given)
        )
    except (PathRefused, NotFound) as refusal:
        return type(refusal).__name__
    kept = images.store.path(image.sha256).read_bytes()
    await images.delete(CALLER, image.id)
    assert kept == INSIDE
    return "kept"


async def test_a_file_replaced_after_it_was_opened_is_not_read(
    manager: Manager, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor decides: a rename after the check changes nothing of what is read."""
    store = manager.runtime.images.store
    real = store.receive

    def swapped(fill: Fill) -> object:
        (root / "disk").unlink()
        (root / "disk").symlink_to(root.parent / "outside" / "secret")
        return real(fill)

    monkeypatch.setattr(type(store), "receive", lambda _self, fill: swapped(fill))
    assert await register(manager.runtime.images, "disk", "x") == "kept"
