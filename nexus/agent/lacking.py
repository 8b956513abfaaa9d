"""Which images a machine needs that this host has not got, and waiting until it has."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio
import anyio.abc

from nexus.agent.attention import Attention
from nexus.agent.errors import FetchFailed, StageFailed
from nexus.agent.fetching import Fetch, Fetcher
from nexus.agent.layout import ROOTFS, VmPaths, drive_file
from nexus.api.common import Progress
from nexus.api.machines import Blob, Machine
from nexus.images.store import Store

LOOK_S = 2.0
"""How long whoever asks for a machine waits for its images before it is told how far they are."""
RETRY_FIRST_S = 5.0
RETRY_MOST_S = 60.0


def contents(machine: Machine) -> list[tuple[str, Blob]]:
    """All images a machine is made of, each with what it is."""
    named = [("kernel", machine.kernel), ("initrd", machine.initrd), ("rootfs", machine.rootfs)]
    named += [(f"drive {drive.name}", drive.blob) for drive in machine.drives]
    return [(what, blob) for what, blob in named if blob is not None]


def lacking(machine: Machine, paths: VmPaths, store: Store) -> list[tuple[str, Blob]]:
    """Those that must be here before the machine's files can be made.

    A disk that was made from one does not need it any more, nor one that comes from a snapshot; but
    a root disk that is to be made anew, or was, does.
    """
    from_snapshot = machine.origin is not None
    made = {"rootfs": paths.root / ROOTFS} if machine.root_boot is None else {}
    made |= {
        f"drive {drive.name}": paths.volume(drive.volume)
        if drive.volume is not None
        else paths.root / drive_file(drive.name)
        for drive in machine.drives
        if drive.volume is not None or not drive.read_only
    }
    return [
        (what, blob)
        for what, blob in contents(machine)
        if not store.has(blob.sha256)
        and not (what in made and (from_snapshot or made[what].exists()))
    ]


@dataclass(frozen=True)
class Waiting:
    """What a machine waits for."""

    names: list[str]
    fetches: Sequence[Fetch]

    @property
    def is_over(self) -> bool:
        return all(fetch.done.is_set() for fetch in self.fetches)

    @property
    def failure(self) -> FetchFailed | None:
        return next((fetch.failure for fetch in self.fetches if fetch.failure), None)

    def progress(self) -> Progress:
        """How far all of them together are."""
        whole = sum(fetch.data_bytes for fetch in self.fetches)
        received = sum(fetch.received_bytes for fetch in self.fetches)
        what = "image" if len(self.names) == 1 else "images"
        return Progress(
            what=f"fetching the {what} of {', '.join(self.names)}",
            fraction=round(min(1.0, received / max(1, whole)), 3),
        )


@dataclass(frozen=True)
class Look:
    """A machine at the moment at which it needs its images, and who owns it."""

    machine: Machine
    paths: VmPaths
    attention: Attention
    tasks: anyio.abc.TaskGroup


@dataclass(frozen=True)
class _Failed:
    """Why the images of a machine did not come, as it was wanted then."""

    machine: Machine
    until: float
    error: StageFailed

    def rests(self, machine: Machine) -> bool:
        """Whether it is not to be tried yet. Somebody who wants something new does not wait."""
        return machine == self.machine and anyio.current_time() < self.until


class ImagesOfOne:
    """The images of one machine on this host."""

    def __init__(self, fetcher: Fetcher | None, store: Store) -> None:
        self._fetcher = fetcher
        self._store = store
        self._waiting: Waiting | None = None
        self._failures = 0
        self._failed: _Failed | None = None

    def progress(self) -> Progress | None:
        """Of what is being fetched; None when nothing is."""
        return self._waiting.progress() if self._waiting is not None else None

    async def are_here(self, look: Look, tell: Callable[[], None]) -> bool:
        """Whether there is nothing to wait for. What is not here is fetched, and the machine poked
        when it has come; its owner does not wait for long, since other things may be wanted of it.

        Raises StageFailed("disk"); the machine is poked again if that may mend itself.
        """
        if self._fetcher is None or self._store.is_registry:
            return True
        missing = lacking(look.machine, look.paths, self._store)
        if missing and self._failed is not None and self._failed.rests(look.machine):
            raise self._failed.error
        if missing and (self._waiting is None or self._waiting.is_over):
            names = [what for what, _ in missing]
            self._waiting = Waiting(names, self._fetcher.begin([blob for _, blob in missing]))
            look.tasks.start_soon(_poke_after, self._waiting, look.attention)
        if missing and self._waiting is not None and not self._waiting.is_over:
            tell()
            await look.attention.next_poke(LOOK_S)
            missing = lacking(look.machine, look.paths, self._store)
        waiting = self._waiting
        if missing and waiting is not None and not waiting.is_over:
            return False
        self._waiting = None
        if missing and waiting is not None and waiting.failure is not None:
            raise self._note(waiting.failure, look)
        self._failures, self._failed = 0, None
        return not missing

    def _note(self, failure: FetchFailed, look: Look) -> StageFailed:
        said, again_s = failure.message, math.inf
        if failure.passing:
            self._failures += 1
            again_s = rest_s(self._failures)
            look.tasks.start_soon(_poke_in, again_s, look.attention)
            said += f"; it is tried again in {again_s:.0f} s"
        error = StageFailed("disk", said, suggestion=failure.suggestion)
        self._failed = _Failed(look.machine, anyio.current_time() + again_s, error)
        return error


def rest_s(failures: int) -> float:
    """How long a machine rests after so many failed fetches in a row."""
    return min(RETRY_MOST_S, RETRY_FIRST_S * 2.0 ** min(failures - 1, 8))


async def _poke_after(waiting: Waiting, attention: Attention) -> None:
    for fetch in waiting.fetches:
        await fetch.done.wait()
    attention.poke()


async def _poke_in(seconds: float, attention: Attention) -> None:
    await anyio.sleep(seconds)
    attention.poke()
