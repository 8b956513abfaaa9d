"""What projects and hosts use: what was promised is in the rows, what is taken the hosts say."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from anyio import to_thread
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.usage import HostUse, ProjectUse, Space, Spaces, Usage
from nexus.images.store import Store
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import HostRow, HostUseRow, ImageRow, VmRow, VolumeRow

MIB = 1 << 20
_REGISTRY = ""
"""Where images lie, which belong to no host."""


class _Kind:
    """Promised and real bytes of all things of one kind, by project and place."""

    def __init__(self, places: set[str], real: Mapping[str, int]) -> None:
        self._places = places
        self._real_of = real
        self._promised: dict[tuple[str, str], int] = defaultdict(int)
        self._real: dict[tuple[str, str], int] = defaultdict(int)

    def add(self, thing: str, project: str, place: str, promised_bytes: int) -> None:
        """``thing`` is its id. One that its host has not told of yet takes nothing."""
        self._promised[project, place] += promised_bytes
        self._real[project, place] += self._real_of.get(thing, 0)

    def of(self, *, project: str | None = None, place: str | None = None) -> Space:
        keys = [
            key for key in self._promised if project in (None, key[0]) and place in (None, key[1])
        ]
        known = all(key[1] in self._places for key in keys)
        return Space(
            promised_mib=_mib(sum(self._promised[key] for key in keys)),
            real_mib=_mib(sum(self._real[key] for key in keys)) if known else None,
        )


@dataclass(slots=True)
class _Book:
    """Everything that takes room."""

    hosts: dict[str, HostUseRow]
    vms: dict[str, tuple[int, int, int]]
    """Number, vCPUs and memory of the VMs of each project."""
    disks: _Kind
    volumes: _Kind
    snapshots: _Kind
    images: _Kind

    def of_project(self, name: str) -> ProjectUse:
        count, vcpu, mem_mib = self.vms.get(name, (0, 0, 0))
        space = Spaces(
            disks=self.disks.of(project=name),
            volumes=self.volumes.of(project=name),
            snapshots=self.snapshots.of(project=name),
            images=self.images.of(project=name),
        )
        return ProjectUse(project=name, vms=count, vcpu=vcpu, mem_mib=mem_mib, space=space)

    def of_host(self, host: HostRow) -> HostUse:
        row = self.hosts.get(host.id)
        images = Space(
            promised_mib=_mib(row.use.images_size_bytes) if row else 0,
            real_mib=_mib(row.use.images_bytes) if row else None,
        )
        return HostUse(
            host_id=host.id,
            name=host.name,
            vms=host.capacity.vms,
            space=Spaces(
                disks=self.disks.of(place=host.id),
                volumes=self.volumes.of(place=host.id),
                snapshots=self.snapshots.of(place=host.id),
                images=images,
            ),
            disk_mib=host.capacity.disk_mib,
            disk_available_mib=host.capacity.disk_available_mib,
            measured_at=row.measured_at if row else None,
        )


class UsageService:
    """Reads what there is; ``pipelines/measuring.py`` writes what hosts say."""

    def __init__(self, db: Database, store: Store) -> None:
        self.db = db
        self.store = store

    async def get(self, project: str | None) -> Usage:
        """What one project uses, or each of them, and every host."""
        real = await to_thread.run_sync(self._contents)
        async with self.db.read() as session:
            hosts = (await session.scalars(select(HostRow).order_by(HostRow.id))).all()
            book = await _read(session, real)
            wanted = {project} if project is not None else await _projects(session)
        return Usage(
            projects=[book.of_project(name) for name in sorted(wanted)],
            hosts=[book.of_host(host) for host in hosts],
        )

    async def of_host(self, host_id: str) -> HostUse | None:
        """What one host uses; None if there is no such host."""
        async with self.db.read() as session:
            host = await session.get(HostRow, host_id)
            return None if host is None else (await _read(session, {})).of_host(host)

    def _contents(self) -> dict[str, int]:
        return {blob.sha256: blob.disk_bytes for blob in self.store.held()}


async def _read(session: AsyncSession, contents: Mapping[str, int]) -> _Book:
    rows = {row.host_id: row for row in await session.scalars(select(HostUseRow))}
    disks, volumes, snapshots = (
        _Kind(set(rows), {k: v for row in rows.values() for k, v in getattr(row.use, kind).items()})
        for kind in ("vms", "volumes", "snapshots")
    )
    images = _Kind({_REGISTRY}, contents)
    there = VmRow.power != "deleted"
    of_vms = select(VmRow.id, VmRow.project, VmRow.host_id, VmRow.disk_mib).where(there)
    for vm_id, project, host_id, disk_mib in await session.execute(of_vms):
        disks.add(vm_id, project, host_id, disk_mib * MIB)
    of_volumes = select(VolumeRow.id, VolumeRow.project, VolumeRow.host_id, VolumeRow.size_mib)
    for volume_id, project, host_id, size_mib in await session.execute(of_volumes):
        volumes.add(volume_id, project, host_id, size_mib * MIB)
    of_snapshots = select(SnapshotRow.id, SnapshotRow.project, SnapshotRow.host_id)
    for snapshot_id, project, host_id, held in await session.execute(
        of_snapshots.add_columns(SnapshotRow.held)
    ):
        snapshots.add(snapshot_id, project, host_id, held.size_bytes if held else 0)
    of_images = select(ImageRow.sha256, ImageRow.project, ImageRow.size_bytes).distinct()
    for sha256, project, size_bytes in await session.execute(of_images):
        images.add(sha256, project, _REGISTRY, size_bytes)
    counted = select(
        VmRow.project, func.count(VmRow.id), func.sum(VmRow.vcpu), func.sum(VmRow.mem_mib)
    )
    vms = {
        project: (int(count), int(vcpu), int(mem_mib))
        for project, count, vcpu, mem_mib in await session.execute(
            counted.where(there).group_by(VmRow.project)
        )
    }
    return _Book(rows, vms, disks, volumes, snapshots, images)


async def _projects(session: AsyncSession) -> set[str]:
    """All that have anything."""
    found: set[str] = set()
    for column in (VmRow.project, VolumeRow.project, SnapshotRow.project, ImageRow.project):
        found |= set(await session.scalars(select(column).distinct()))
    return found


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // MIB)
