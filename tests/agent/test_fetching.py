"""Fetching contents from a manager, within one process, with real HTTP between."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from nexus.agent import fetching, lacking
from nexus.agent.attention import Attention
from nexus.agent.errors import SettingsInvalid, StageFailed
from nexus.agent.eviction import evict
from nexus.agent.fetching import Fetch, Fetcher
from nexus.agent.lacking import ImagesOfOne, Look
from nexus.agent.layout import Layout
from nexus.agent.manager_images import ManagerImages
from nexus.agent.settings import Settings
from nexus.api.machines import Blob, Machine
from nexus.ids import new_id
from nexus.images import room
from nexus.images.store import HeldBlob, Store
from nexus.manager.app import create_app
from nexus.manager.pipelines.builds import BuildPipeline
from nexus.manager.routes.blobs import joined
from tests.agent.blobs import MIB, Gate, content, same, stored
from tests.agent.harness import a_wish
from tests.manager.core import served, settings_for

pytestmark = pytest.mark.anyio


class Place:
    """A manager with contents, and a host that has none."""

    def __init__(self, manager: Path, folder: Path, base: str, gate: Gate) -> None:
        self.manager = manager
        self.folder = folder
        self.base = base
        self.gate = gate
        self.theirs = Store(manager / "store")
        self.mine = Store(folder / "mine")
        self.in_use: set[str] = set()
        self.token = (manager / "host.token").read_text().strip()

    def give(self, name: str, mib: int = 8) -> Blob:
        blob = stored(self.theirs, content(self.folder, name, mib))
        self.in_use.add(blob.sha256)
        return blob

    @contextlib.asynccontextmanager
    async def fetcher(
        self, limit_mib: int | None = None, token: str | None = None
    ) -> AsyncIterator[Fetcher]:
        limit = None if limit_mib is None else limit_mib * MIB
        source = ManagerImages(self.base, token or self.token)
        made = Fetcher(self.mine, lambda: source, limit)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.run, lambda: self.in_use)
            with anyio.fail_after(20):
                while made._tasks is None:
                    await anyio.lowlevel.checkpoint()
            yield made
            tasks.cancel_scope.cancel()


@pytest.fixture(scope="module")
async def manager(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Path, str, Gate]]:
    folder = tmp_path_factory.mktemp("manager")
    settings = settings_for(folder, f"sqlite:///{folder / 'nexus.db'}", f"unix:{folder}/a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "REST_FIRST_S", 0.001)
        # At its start it would sweep contents that no image names.
        patch.setattr(BuildPipeline, "run", lambda _: anyio.sleep_forever())
        gate = Gate(patch)
        async with served(create_app(settings)) as base:
            yield folder, base, gate


@pytest.fixture
def place(manager: tuple[Path, str, Gate], tmp_path: Path) -> Place:
    folder, base, gate = manager
    gate.reset()
    return Place(folder, tmp_path, base, gate)


async def end_of(*fetches: Fetch) -> None:
    with anyio.fail_after(60):
        for fetch in fetches:
            await fetch.done.wait()


async def failure_of(fetcher: Fetcher, blob: Blob) -> tuple[str, str, bool]:
    (fetch,) = fetcher.begin([blob])
    await end_of(fetch)
    assert fetch.failure is not None
    return fetch.failure.message, fetch.failure.suggestion, fetch.failure.passing


async def test_many_want_it_and_it_comes_once(place: Place) -> None:
    blob = place.give("disk")
    async with place.fetcher() as fetcher:
        fetches = [fetch for _ in range(5) for fetch in fetcher.begin([blob])]
        assert len(set(map(id, fetches))) == 1
        await end_of(*fetches)
    assert place.gate.maps == [blob.sha256]
    theirs, mine = place.theirs.path(blob.sha256), place.mine.path(blob.sha256)
    assert same(theirs, mine)
    assert sum(end - start for _, start, end in place.gate.reads) <= 9 * MIB, "no holes are sent"
    assert mine.stat().st_blocks * 512 <= 9 * MIB
    assert fetches[0].received_bytes == fetches[0].data_bytes


async def test_it_goes_on_where_it_was(place: Place) -> None:
    blob = place.give("disk")
    place.gate.hold_after = 6 * MIB
    async with place.fetcher() as fetcher:
        (fetch,) = fetcher.begin([blob])
        with anyio.fail_after(60):
            while fetch.received_bytes < 6 * MIB:  # noqa: ASYNC110 - it tells nobody
                await anyio.sleep(0.005)
    place.gate.open()
    before = len(place.gate.reads)
    async with place.fetcher() as fetcher:
        await end_of(*fetcher.begin([blob]))
    assert same(place.theirs.path(blob.sha256), place.mine.path(blob.sha256))
    again = sum(end - start for _, start, end in place.gate.reads[before:])
    assert again <= 3 * MIB, "what had come is not sent again"


async def test_failures_that_pass_and_that_do_not(place: Place) -> None:
    blob = place.give("disk")
    place.gate.fails = fetching.ATTEMPTS
    async with place.fetcher() as fetcher:
        message, cure, passing = await failure_of(fetcher, blob)
        assert ("not now" in message, bool(cure), passing) == (True, True, True)
        place.gate.fails = fetching.ATTEMPTS - 1
        await end_of(*fetcher.begin([blob]))
        assert place.mine.has(blob.sha256)
        missing = Blob(sha256="0" * 64, size_bytes=1)
        message, cure, passing = await failure_of(fetcher, missing)
        assert ("no content" in message, passing) == (True, False)
    stranger = (place.manager / "admin.token").read_text().strip()
    async with place.fetcher(token=stranger) as fetcher:
        message, cure, passing = await failure_of(fetcher, place.give("other"))
    assert ("token" in message, "host.token" in cure, passing) == (True, True, False)


async def test_what_was_damaged_on_the_way_is_fetched_anew(place: Place) -> None:
    blob = place.give("disk")
    half = place.mine.root / "incoming" / blob.sha256
    half.parent.mkdir()
    half.write_bytes(b"x" * MIB)
    async with place.fetcher() as fetcher:
        await end_of(*fetcher.begin([blob]))
    assert same(place.theirs.path(blob.sha256), place.mine.path(blob.sha256))

    bad = place.give("bad")
    path = place.theirs.path(bad.sha256)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"y")
    async with place.fetcher() as fetcher:
        message, _, passing = await failure_of(fetcher, bad)
    assert (f"not {bad.sha256}" in message, passing) == (True, False)
    assert not place.mine.has(bad.sha256)
    assert list((place.mine.root / "incoming").iterdir()) == []


async def test_under_a_limit_the_least_recently_used_go(place: Place) -> None:
    one, two, three = (place.give(name) for name in ("one", "two", "three"))
    async with place.fetcher(limit_mib=20) as fetcher:
        await end_of(*fetcher.begin([one]))
        await end_of(*fetcher.begin([two]))
        place.mine.clone(one.sha256, place.folder / "used")
        place.in_use = {three.sha256}
        await end_of(*fetcher.begin([three]))
        here = [place.mine.has(blob.sha256) for blob in (one, two, three)]
        assert here == [True, False, True]

        place.in_use = {one.sha256, two.sha256, three.sha256}
        message, cure, passing = await failure_of(fetcher, two)
        assert ("no room" in message, "NEXUS_STORE_LIMIT_MIB" in cure, passing) == (
            True,
            True,
            False,
        )
        assert place.mine.has(one.sha256)


async def test_what_a_vm_comes_for_meanwhile_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = (place.give(name) for name in ("one", "two", "three"))

    def before_it_goes(*looked: Any) -> list[HeldBlob] | None:
        going = evict(*looked)
        if going and going[0].sha256 == one.sha256:
            place.in_use.add(one.sha256)
        return going

    async with place.fetcher(limit_mib=20) as fetcher:
        await end_of(*fetcher.begin([one]))
        await end_of(*fetcher.begin([two]))
        place.in_use = {three.sha256}
        monkeypatch.setattr(fetching, "evict", before_it_goes)
        await end_of(*fetcher.begin([three]))
    here = [place.mine.has(blob.sha256) for blob in (one, two, three)]
    assert here == [True, False, True]


async def test_while_one_image_goes_a_vm_may_come_for_the_next(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = place.give("one"), place.give("two"), place.give("three", 16)
    unlink = Path.unlink

    def meanwhile(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.parent == place.mine.path(one.sha256).parent and not place.mine.has(one.sha256):
            place.in_use.add(two.sha256)

    async with place.fetcher(limit_mib=20) as fetcher:
        await end_of(*fetcher.begin([one]))
        await end_of(*fetcher.begin([two]))
        place.in_use = {three.sha256}
        monkeypatch.setattr(Path, "unlink", meanwhile)
        message, _, _ = await failure_of(fetcher, three)
    assert "no room" in message
    assert [place.mine.has(blob.sha256) for blob in (one, two)] == [False, True]


async def test_free_space_is_promised_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = stored(place.mine, content(place.folder, "idle"))
    one, two, three = (place.give(name) for name in ("one", "two", "three"))
    monkeypatch.setattr(room, "left", lambda _: 12 * MIB)
    place.gate.hold_after = 0
    async with place.fetcher() as fetcher:
        (first,) = fetcher.begin([one])
        with anyio.fail_after(60):
            while not place.gate.reads:  # noqa: ASYNC110 - it tells nobody
                await anyio.sleep(0.005)
        assert place.mine.has(idle.sha256)
        (second,) = fetcher.begin([two])
        with anyio.fail_after(60):
            while len(place.gate.reads) < 2:  # noqa: ASYNC110 - it tells nobody
                await anyio.sleep(0.005)
        assert not place.mine.has(idle.sha256)
        message, _, passing = await failure_of(fetcher, three)
        assert ("no room" in message, passing) == (True, True), "the others may end without it"
        place.gate.open()
        await end_of(first, second)
    assert (first.failure, second.failure) == (None, None)


async def test_on_a_disk_that_fills_meanwhile_room_is_looked_for_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = stored(place.mine, content(place.folder, "idle"))
    blob = place.give("disk")

    def left(_place: Path | int) -> int:
        if not place.mine.has(idle.sha256):
            return 64 * MIB
        return 0 if place.gate.reads else 20 * MIB

    monkeypatch.setattr(room, "left", left)
    async with place.fetcher() as fetcher:
        (fetch,) = fetcher.begin([blob])
        await end_of(fetch)
    assert fetch.failure is None
    assert [place.mine.has(one.sha256) for one in (idle, blob)] == [False, True]


def test_small_holes_are_joined() -> None:
    assert joined([(0, 4), (6, 8), (20, 30)], 8) == [(0, 8), (20, 30)]
    assert joined([], 8) == []


async def test_a_machine_waits_rests_and_is_woken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lacking, "RETRY_FIRST_S", 0.2)
    blob = place.give("disk")
    attention = Attention()
    paths = Layout(place.folder / "fc").vm(new_id())
    told: list[str] = []
    async with place.fetcher() as fetcher, anyio.create_task_group() as tasks:
        one = ImagesOfOne(fetcher, place.mine)

        async def look(machine: Machine) -> bool:
            with anyio.fail_after(60):
                while True:
                    attention.begin()
                    here = await one.are_here(
                        Look(machine, paths, attention, tasks), lambda: told.append("waits")
                    )
                    if here:
                        return True
                    await attention.poked()

        machine = machine_of(paths.vm_id, blob)
        place.gate.fails = fetching.ATTEMPTS
        with pytest.raises(StageFailed) as failed:
            await look(machine)
        assert (failed.value.error.stage, "tried again" in failed.value.error.message) == (
            "disk",
            True,
        )
        asked = len(place.gate.maps)
        with pytest.raises(StageFailed):
            await look(machine)
        assert len(place.gate.maps) == asked, "it rests"
        attention.begin()
        with anyio.fail_after(60):
            await attention.poked()
        assert await look(machine)
        assert one.progress() is None

        # Whoever wants something else is not made to wait.
        other = machine.model_copy(update={"rootfs": place.give("other")})
        place.gate.fails = fetching.ATTEMPTS
        with pytest.raises(StageFailed):
            await look(other)
        assert await look(other.model_copy(update={"generation": 2}))
        assert told
        tasks.cancel_scope.cancel()


def machine_of(vm_id: str, blob: Blob) -> Machine:
    return a_wish(id=vm_id, mem_mib=32, kernel=blob, rootfs=blob)


async def test_what_may_be_asked_of_the_manager(place: Place) -> None:
    blob = place.give("disk")
    url = f"/v1/agent/blobs/{blob.sha256}"
    content = place.theirs.path(blob.sha256).read_bytes()
    bearer = {"authorization": f"Bearer {place.token}"}
    async with httpx.AsyncClient(base_url=place.base, headers=bearer, timeout=60) as http:
        whole = await http.get(url)
        assert (whole.status_code, whole.content == content) == (200, True)
        part = await http.get(url, headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, content[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
        rest = await http.get(url, headers={"range": f"bytes={len(content) - 5}-"})
        assert rest.content == content[-5:]
        for bad in ("bytes=5-4", f"bytes={len(content)}-", "bytes=-5", "bytes=0-1,3-4", "items=1"):
            answer = await http.get(url, headers={"range": bad})
            assert (answer.status_code, answer.json()["error"]) == (416, "bad_request"), bad
        for wrong in ("..%2f..%2fadmin.token", "A" * 64, "0" * 63):
            assert (await http.get(f"/v1/agent/blobs/{wrong}")).status_code in (404, 422)
        assert (await http.get("/v1/vms")).status_code == 403
        admin = {"authorization": f"Bearer {(place.manager / 'admin.token').read_text().strip()}"}
        for path in (url, f"{url}/map"):
            assert (await http.get(path, headers=admin)).status_code == 403


@pytest.mark.parametrize(
    ("base", "kept"),
    [
        ("http://127.0.0.1:1/", "http://127.0.0.1:1"),
        ("https://manager.example", "https://manager.example"),
        ("unix:/run/manager.sock", "unix:/run/manager.sock"),
        ("http://manager.example", None),
        ("http://10.0.0.1:18080", None),
        ("ftp://127.0.0.1", None),
        ("", None),
    ],
)
def test_the_token_goes_nowhere_unprotected(tmp_path: Path, base: str, kept: str | None) -> None:
    file = tmp_path / "host.token"
    file.write_text("x" * 32)
    given = {"MANAGER_BASE": base, "NEXUS_HOST_TOKEN_FILE": str(file)}
    if kept is None:
        with pytest.raises(SettingsInvalid):
            Settings.from_environment(given)
    else:
        assert Settings.from_environment(given).manager_base == kept
    assert Settings.from_environment({"MANAGER_BASE": base}).manager_base is None
    with pytest.raises(SettingsInvalid, match="NEXUS_STORE_LIMIT_MIB"):
        Settings.from_environment({"NEXUS_STORE_LIMIT_MIB": "much"})
