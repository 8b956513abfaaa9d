"""The shelf of this host's snapshots: whole folders, or nothing.

A snapshot is made as ``.{id}.new`` and renamed; it goes as ``.{id}.old``. What a killed agent left
of either is removed at the next start. Nobody writes to a file of a snapshot that is on the shelf:
VMs have second names of them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog
from pydantic import ValidationError

from nexus.agent import disks, faults, snapshot_files
from nexus.agent.atomic import write_atomically
from nexus.agent.errors import host_full
from nexus.agent.layout import Layout, SnapshotPaths
from nexus.api.errors import Conflict, NotFound
from nexus.api.snapshots import HostSnapshot

log = structlog.get_logger("snapshots")


class Shelf:
    """The snapshots by id. Its methods are called from the event loop only."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._kept: dict[str, HostSnapshot] = {}
        self._made: dict[str, anyio.Event] = {}
        """Those in the making, each with its end."""
        self._parents: dict[str, str] = {}
        """What the diffs among them lean on."""
        self._turn = anyio.Lock()
        """One merge or deletion at a time: each changes what another may lean on."""

    def take_up(self) -> None:
        """Finds what is there after a start, and removes what was cut off in the making."""
        folder = self._layout.snapshots_dir
        for left in [*folder.glob(".*.new"), *folder.glob(".*.old")]:
            disks.remove_tree(left)
        for snapshot_id in self._layout.snapshot_ids():
            paths = self._layout.snapshot(snapshot_id)
            for half in paths.dir.glob(".*.new"):
                half.unlink(missing_ok=True)
            try:
                meta = HostSnapshot.model_validate_json(paths.meta.read_bytes())
            except (OSError, ValidationError) as error:
                # Left as it is, for a person to look at: it may be the only copy of a disk.
                log.error("a snapshot cannot be read", snapshot=snapshot_id, error=str(error))
                continue
            self._kept[meta.id] = meta

    def all(self) -> list[HostSnapshot]:
        """The oldest first."""
        return [self._kept[snapshot_id] for snapshot_id in sorted(self._kept)]

    def find(self, snapshot_id: str) -> HostSnapshot | None:
        return self._kept.get(snapshot_id)

    def get(self, snapshot_id: str) -> HostSnapshot:
        """Raises NotFound."""
        found = self._kept.get(snapshot_id)
        if found is None:
            raise NotFound(
                f"this host has no snapshot {snapshot_id}", suggestion="nexus snapshot ls"
            )
        return found

    def paths(self, snapshot_id: str) -> SnapshotPaths:
        return self._layout.snapshot(snapshot_id)

    # -- making one ------------------------------------------------------------------------------

    @contextmanager
    def making(self, snapshot_id: str, parent_id: str | None = None) -> Iterator[SnapshotPaths]:
        """A folder for a snapshot in the making, which is gone at the end: kept, or removed. A diff
        names its parent, which stays until then.

        Raises Conflict when there is one already, or no such parent; HostFull.
        """
        paths = self._layout.snapshot_in_making(snapshot_id)
        if snapshot_id in self._made:
            raise Conflict(
                f"the snapshot {snapshot_id} is being taken of another VM",
                suggestion="give this one an id of its own",
            )
        if parent_id is not None and parent_id not in self._kept:
            raise Conflict(
                f"the parent {parent_id} is not on this host any more",
                suggestion="take a full snapshot first",
            )
        self._made[snapshot_id] = made = anyio.Event()
        if parent_id is not None:
            self._parents[snapshot_id] = parent_id
        try:
            _make_folder(paths.dir)
            yield paths
        finally:
            disks.remove_tree(paths.dir)
            del self._made[snapshot_id]
            self._parents.pop(snapshot_id, None)
            made.set()

    async def keep(self, snapshot_id: str, seal: Callable[[], HostSnapshot]) -> HostSnapshot:
        """Puts a snapshot on the shelf, durably; ``seal`` makes its files so and says what they
        are. Raises HostFull or what ``seal`` raises, and then keeps nothing."""
        meta = await anyio.to_thread.run_sync(self._keep, snapshot_id, seal)
        self._kept[snapshot_id] = meta
        return meta

    def _keep(self, snapshot_id: str, seal: Callable[[], HostSnapshot]) -> HostSnapshot:
        making = self._layout.snapshot_in_making(snapshot_id)
        try:
            meta = seal()
            _write_meta(making, meta)
            faults.point("snapshot_sealed")
            making.dir.rename(self._layout.snapshot(snapshot_id).dir)
            _sync(self._layout.snapshots_dir)
        except OSError as error:
            raise host_full("the snapshot cannot be kept", error, making.dir.parent) from error
        faults.point("snapshot_kept")
        return meta

    async def lay_under(self, snapshot_id: str, folder: SnapshotPaths) -> bool:
        """Puts the memory of a snapshot into the folder of one that is to be laid over it; whether
        that is possible. Deleting the snapshot then takes nothing away. Raises HostFull."""
        try:
            await self.whole(snapshot_id)
        except NotFound:
            return False
        try:
            snapshot_files.link(self.paths(snapshot_id).memory, folder.base)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise host_full("the snapshot cannot be begun", error, folder.dir.parent) from error
        return True

    # -- chains ----------------------------------------------------------------------------------

    async def whole(self, snapshot_id: str) -> HostSnapshot:
        """The snapshot with all of its memory: a diff is merged with its parent's, once.

        Raises NotFound, or HostFull.
        """
        if not self.get(snapshot_id).needs_parent:
            return self.get(snapshot_id)
        async with self._turn:
            return await self._whole(snapshot_id)

    async def _whole(self, snapshot_id: str) -> HostSnapshot:
        meta = self.get(snapshot_id)
        if not meta.needs_parent or meta.parent_id is None:
            return meta
        await self._whole(meta.parent_id)
        merge = partial(self._merge, meta, meta.parent_id)
        self._kept[snapshot_id] = merged = await anyio.to_thread.run_sync(merge)
        log.info("a diff is whole", snapshot=snapshot_id, parent=meta.parent_id)
        return merged

    def _merge(self, meta: HostSnapshot, parent_id: str) -> HostSnapshot:
        """Cut off at any point it can be done again: laying a diff over its parent twice, or what
        came of it, is the same as once."""
        paths = self._layout.snapshot(meta.id)
        try:
            memory = snapshot_files.merge(self._layout.snapshot(parent_id).memory, paths.memory)
            faults.point("snapshot_merged")
            files = [memory if file.name == memory.name else file for file in meta.files]
            merged = meta.model_copy(
                update={
                    "needs_parent": False,
                    "files": files,
                    "disk_bytes": sum(file.disk_bytes for file in files),
                }
            )
            _write_meta(paths, merged)
        except OSError as error:
            raise host_full("the snapshot cannot be merged", error, paths.dir.parent) from error
        return merged

    async def delete(self, snapshot_id: str) -> None:
        """Removes a snapshot; succeeds when there is none. Diffs that lean on it are made whole
        first, also one that is being taken. VMs that were loaded from it keep what they have.
        Raises HostFull."""
        if snapshot_id in self._made:
            await self._made[snapshot_id].wait()
        while (awaited := await self._delete(snapshot_id)) is not None:
            await awaited.wait()

    async def _delete(self, snapshot_id: str) -> anyio.Event | None:
        """The end of a diff in the making that leans on it; then it is there still."""
        async with self._turn:
            while (child := self._leaning(snapshot_id)) is not None:
                await self._whole(child)
            # From here to the renaming nothing waits, so that no diff is begun or kept.
            for making, parent_id in self._parents.items():
                if parent_id == snapshot_id:
                    return self._made[making]
            if snapshot_id not in self._kept:
                return None
            going = self._layout.snapshot_going(snapshot_id).dir
            self._layout.snapshot(snapshot_id).dir.rename(going)
            del self._kept[snapshot_id]
            faults.point("snapshot_going")
            await anyio.to_thread.run_sync(disks.remove_tree, going)
        return None

    def _leaning(self, snapshot_id: str) -> str | None:
        """A diff that has not all of its memory without that one."""
        return next(
            (m.id for m in self.all() if m.needs_parent and m.parent_id == snapshot_id), None
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise host_full("the snapshot cannot be begun", error, folder.parent) from error


def _write_meta(paths: SnapshotPaths, meta: HostSnapshot) -> None:
    write_atomically(paths.meta, meta.model_dump_json().encode())
    _sync(paths.meta)
    _sync(paths.dir)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
