"""Images that this host lacks, fetched from the manager: each content once, however many VMs wait.

What was received before a failure, or before the agent was killed, is not sent again. Nothing here
runs for a host that shares its store with the manager.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from nexus.agent.errors import FetchFailed
from nexus.agent.eviction import evict
from nexus.agent.manager_images import ManagerImages
from nexus.api.blobs import BlobMap
from nexus.api.machines import Blob
from nexus.images import incoming, room, sparse
from nexus.images.errors import BadImage, StoreError
from nexus.images.incoming import Incoming
from nexus.images.store import Store

ATTEMPTS = 4
"""So many failures without any progress in between end a fetch."""
REST_FIRST_S = 0.5
LOOK_S = 5.0
"""How often a transfer looks whether anybody still wants it."""

T = TypeVar("T")

log = structlog.get_logger("fetching")


class Fetch:
    """One content on its way. ``done`` is set at its end; then ``failure`` says whether it came."""

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self.data_bytes = max(1, blob.size_bytes)
        self.received_bytes = 0
        self.failure: FetchFailed | None = None
        self.done = anyio.Event()


class Fetcher:
    """All fetches of one host. Lives inside ``run``."""

    def __init__(
        self, store: Store, make_source: Callable[[], ManagerImages], limit_bytes: int | None
    ) -> None:
        """``limit_bytes`` is the most that the store may take; None is as much as there is."""
        self._store = store
        self._make_source = make_source
        self._limit_bytes = limit_bytes
        self._fetches: dict[str, Fetch] = {}
        self._reserved: dict[str, int] = {}
        self._in_use: Callable[[], Set[str]] = frozenset
        self._room = anyio.Lock()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._source: ManagerImages | None = None

    async def run(self, in_use: Callable[[], Set[str]]) -> None:
        """Fetches until cancelled. ``in_use`` names the contents of all VMs of this host."""
        self._in_use = in_use
        self._source = self._make_source()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                await anyio.sleep_forever()
        finally:
            self._tasks = None
            with anyio.CancelScope(shield=True):
                await self._source.close()

    def begin(self, blobs: Iterable[Blob]) -> list[Fetch]:
        """Has contents fetched, or joins whoever wanted them before; one fetch for each."""
        fetches = []
        for blob in blobs:
            fetch = self._fetches.get(blob.sha256)
            if fetch is None and self._tasks is not None and self._source is not None:
                fetch = self._fetches[blob.sha256] = Fetch(blob)
                self._tasks.start_soon(self._run, fetch, self._source)
            if fetch is not None:
                fetches.append(fetch)
        return fetches

    async def _run(self, fetch: Fetch, source: ManagerImages) -> None:
        sha256 = fetch.blob.sha256
        try:
            await self._persist(fetch, source)
        except FetchFailed as failure:
            fetch.failure = failure
            log.warning("an image was not fetched", sha256=sha256, error=failure.message)
        finally:
            self._fetches.pop(sha256, None)
            self._reserved.pop(sha256, None)
            fetch.done.set()

    async def _persist(self, fetch: Fetch, source: ManagerImages) -> None:
        """Tries until it is here. Raises FetchFailed when it does not come any further."""
        failures, came_to = 0, 0
        while True:
            try:
                await self._transfer(fetch, source)
                return
            except FetchFailed as failure:
                failures = 1 if fetch.received_bytes > came_to else failures + 1
                came_to = fetch.received_bytes
                if not failure.passing or failures >= ATTEMPTS:
                    raise
                log.info("a fetch rests", sha256=fetch.blob.sha256, error=failure.message)
            await anyio.sleep(REST_FIRST_S * 2.0 ** (failures - 1))

    async def _transfer(self, fetch: Fetch, source: ManagerImages) -> None:
        blob = fetch.blob
        where = await source.map(blob.sha256)
        if where.size_bytes != blob.size_bytes:
            raise FetchFailed(
                f"the manager's content {blob.sha256} has {where.size_bytes} bytes, not "
                f"{blob.size_bytes}",
                suggestion="register the image again under any name (nexus image add)",
            )
        await self._make_room(fetch, where)
        begun = await _in_thread(partial(Incoming, self._store, blob.sha256, blob.size_bytes))
        # What lay here may have been damaged with the host, so it is fetched anew once.
        resumed = begun.offset > 0
        try:
            fetch.data_bytes = max(1, where.data_bytes)
            await self._receive(fetch, source, where, begun)
            await _in_thread(begun.finish)
        except BadImage as error:
            fetch.received_bytes = 0
            raise FetchFailed(str(error), suggestion=error.suggestion, passing=resumed) from error
        finally:
            begun.close()
        log.info("an image was fetched", sha256=blob.sha256, data_bytes=where.data_bytes)

    async def _receive(
        self, fetch: Fetch, source: ManagerImages, where: BlobMap, begun: Incoming
    ) -> None:
        looked_at = anyio.current_time()
        before = sum(min(end, begun.offset) - start for start, end in _until(where, begun.offset))
        fetch.received_bytes = before
        for start, end in where.ranges:
            if end <= begun.offset:
                continue
            await _in_thread(partial(begun.skip, start))
            async with source.part(where.sha256, begun.offset, end) as chunks:
                async for chunk in chunks:
                    await _in_thread(partial(begun.write, chunk))
                    fetch.received_bytes += len(chunk)
                    if anyio.current_time() - looked_at > LOOK_S:
                        looked_at = anyio.current_time()
                        self._check_wanted(where.sha256)
            if begun.offset != end:
                raise FetchFailed(
                    "the manager sent less than it said",
                    suggestion="read the manager's log",
                    passing=True,
                )

    def _check_wanted(self, sha256: str) -> None:
        if sha256 not in self._in_use():
            raise FetchFailed("no VM wants the image any more", suggestion="nexus ls")

    async def _make_room(self, fetch: Fetch, where: BlobMap) -> None:
        """Forgets images that no VM here uses. Raises FetchFailed when that is not enough."""
        sha256 = where.sha256
        async with self._room:
            self._reserved.pop(sha256, None)
            enough = False
            while not enough:
                keep, promised = set(self._in_use()), dict(self._reserved)
                going, missing = await _in_thread(
                    partial(self._look_for_room, sha256, where.data_bytes, keep, promised)
                )
                if missing:
                    raise FetchFailed(
                        "the image store of this host has no room for "
                        f"{where.data_bytes >> 20} MiB: {missing >> 20} MiB are missing although "
                        "all that no VM uses may go",
                        suggestion="delete VMs on this host (nexus ls), give it a larger disk, or "
                        "raise NEXUS_STORE_LIMIT_MIB",
                        passing=bool(promised),  # Those may end without what they were promised.
                    )
                enough = await self._forget(going)
            self._reserved[sha256] = where.data_bytes

    async def _forget(self, going: Iterable[str]) -> bool:
        """Removes contents; False when a VM came for one of them meanwhile, which then stays."""
        for sha256 in going:
            # Whether a VM finds its images is looked up on this loop too: either it comes now and
            # is seen here, or it comes later and finds that this one is to be fetched again.
            if sha256 in self._in_use():
                return False
            with _told_as_fetch_failure():
                aside = self._store.set_aside(sha256)
            log.info("an image was evicted", sha256=sha256)
            await _in_thread(partial(aside.unlink, missing_ok=True))
        return True

    def _look_for_room(
        self, sha256: str, needed: int, keep: set[str], promised: dict[str, int]
    ) -> tuple[list[str], int]:
        """What is to go, and how much is missing then; others fetch what is ``promised``."""
        incoming.clear(self._store, keep | self._fetches.keys())
        held = self._store.held()
        # Of these, what came meanwhile is among what is held, and takes no more.
        here = {blob.sha256 for blob in held}
        promised = {other: size for other, size in promised.items() if other not in here}
        to_come = sum(
            max(0, size - _received(self._store, other)) for other, size in promised.items()
        )
        # What was received of it already needs no more room.
        free = room.left(self._store.root) + _received(self._store, sha256) - to_come
        if self._limit_bytes is not None:
            taken = sum(blob.disk_bytes for blob in held) + sum(promised.values())
            free = min(free, self._limit_bytes - taken)
        going = evict(held, keep, needed, free)
        if going is None:
            spare = sum(blob.disk_bytes for blob in held if blob.sha256 not in keep)
            return [], needed - free - spare
        return [blob.sha256 for blob in going], 0


def _until(where: BlobMap, offset: int) -> list[tuple[int, int]]:
    return [(start, end) for start, end in where.ranges if start < offset]


def _received(store: Store, sha256: str) -> int:
    """What a content takes of the disk by now, also one that was put into the store just now."""
    for file in (incoming.file_of(store, sha256), store.path(sha256)):
        with suppress(FileNotFoundError):
            return file.stat().st_blocks * sparse.BLOCK
    return 0


async def _in_thread(work: Callable[[], T]) -> T:
    """Runs what blocks; what the store refuses is a FetchFailed."""
    with _told_as_fetch_failure():
        return await anyio.to_thread.run_sync(work)


@contextmanager
def _told_as_fetch_failure() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise FetchFailed(str(error), suggestion=error.suggestion, passing=True) from error
    except OSError as error:
        raise FetchFailed(
            f"the image store cannot be written: {error.strerror}",
            suggestion="free space on this host: df -h, nexus ls",
            # Then room is looked for once more, and images that no VM uses may go.
            passing=error.errno in (errno.ENOSPC, errno.EDQUOT),
        ) from error
