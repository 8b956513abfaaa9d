"""Fetching contents from a manager, within one process, with real HTTP between."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from nexus.agent import fetching
from nexus.agent.fetching import Fetch, Fetcher
from nexus.agent.manager_images import ManagerImages
from nexus.api.machines import Blob
from nexus.images.store import Store
from nexus.manager.app import create_app
from nexus.manager.pipelines.builds import BuildPipeline
from nexus.manager.routes.blobs import joined
from tests.agent.blobs import MIB, Gate, content, same, stored
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


def test_small_holes_are_joined() -> None:
    assert joined([(0, 4), (6, 8), (20, 30)], 8) == [(0, 8), (20, 30)]
    assert joined([], 8) == []
