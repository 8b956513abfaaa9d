"""Snapshots as files: sent from their host, and taken in by one, never held here.

An import is a row from its first moment. It holds the row's lease for as long as it lasts; cut
off, its row is found by the pipeline, which clears the host and says so.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import anyio
from pydantic import ValidationError
from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.archives import MANIFEST, ArchiveReader, BadArchive, entry
from nexus.api.common import Created, Engine, Timestamp, VmName, Wire
from nexus.api.devices import DriveCreate
from nexus.api.errors import (
    Conflict,
    ImageNotReady,
    InvalidState,
    NexusError,
    NoCapacity,
    NotFound,
)
from nexus.api.quotas import Resources
from nexus.api.snapshots import HostSnapshot, SnapshotName
from nexus.api.vm_snapshots import Snapshot
from nexus.api.vms import VmSpec
from nexus.ids import new_id
from nexus.manager.agents import Agents
from nexus.manager.db.columns import Blueprint, StoredDrive, StoredImage
from nexus.manager.db.network_tables import NetworkRow
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import HostRow, ImageRow
from nexus.manager.pipelines import leases
from nexus.manager.pipelines.snapshots import SnapshotPipeline
from nexus.manager.services import quotas
from nexus.manager.services.hosts import is_healthy
from nexus.manager.services.snapshot_taking import check_name, name_taken
from nexus.manager.services.snapshot_views import to_snapshot
from nexus.manager.services.snapshots import discard, find_ready
from nexus.manager.uow import Caller, UnitOfWork, change, deed

CLEAR_TIMEOUT_S = 5.0
"""How long an import that failed waits for its host to clear what came of it."""


class Manifest(Wire):
    """What a manager puts before what the host sends."""

    format: Literal[1] = 1
    name: SnapshotName
    vm_name: VmName
    engine: Engine
    blueprint: Blueprint
    exported_at: Timestamp


@dataclass(frozen=True)
class Exported:
    """A snapshot as it is sent."""

    name: str
    size_bytes: int
    content: AsyncIterator[bytes]


class SnapshotArchives:
    """The rules of exports and imports."""

    def __init__(self, db: Database, agents: Agents, pipeline: SnapshotPipeline) -> None:
        self.db = db
        self.agents = agents
        self.pipeline = pipeline

    async def export(
        self, caller: Caller, ref: str
    ) -> tuple[Exported, Callable[[], Awaitable[None]]]:
        """A snapshot as a stream, and what is to be called when it has ended. A diff is made whole.

        Raises NotFound, InvalidState, HostUnreachable.
        """
        async with self.db.write() as session:
            row = await find_ready(session, caller.project, ref)
        before: dict[str, object] = {"name": row.name}
        async with deed(self.db, caller, "snapshot.export", target=row.id, before=before):
            opened = self.agents.of(row.host_id).get_archive(row.id)
            size, content = await opened.__aenter__()
        manifest = Manifest(
            name=row.name,
            vm_name=row.vm_name,
            engine=row.engine,
            blueprint=row.blueprint,
            exported_at=datetime.now(UTC),
        )
        first = entry(MANIFEST, manifest.model_dump_json().encode())

        async def all_of_it() -> AsyncIterator[bytes]:
            yield first
            async for piece in content:
                yield piece

        async def close() -> None:
            await opened.__aexit__(None, None, None)

        return Exported(row.name, len(first) + size, all_of_it()), close

    async def take_in(
        self, caller: Caller, body: AsyncIterator[bytes], name: str | None, host: str | None
    ) -> Snapshot:
        """Makes a snapshot of an archive, on a host that runs its engine; it is ``ready`` when the
        host has verified every file.

        Raises BadArchive, NameTaken, ImageNotReady, NotFound, InvalidState, NoCapacity, and what
        the host refuses; then nothing is left of it.
        """
        reader = ArchiveReader(body)
        manifest = _read(await reader.text(MANIFEST))
        try:
            async with change(self.db, caller, "snapshot.import") as unit:
                row = await self._begin(unit, manifest, name, host)
        except IntegrityError as error:
            raise name_taken(name or manifest.name) from error
        token = row.lease_token or ""
        with self.pipeline.holding(token):
            try:
                held = await self.agents.of(row.host_id).put_archive(row.id, reader.rest())
                _check_shape(row.blueprint, held)
            except BaseException:
                await self._give_up(row, token)
                raise
            return await self._finish(row.id, token, held)

    async def _begin(
        self, unit: UnitOfWork, manifest: Manifest, name: str | None, host: str | None
    ) -> SnapshotRow:
        session, project = unit.session, unit.caller.project
        blueprint = await _at_home(session, project, manifest.blueprint)
        await quotas.admit(session, project, Resources(disk_mib=blueprint.snapshot_mib))
        row = SnapshotRow(
            id=new_id(),
            project=project,
            name=name or manifest.name,
            vm_id=None,
            vm_name=manifest.vm_name,
            host_id=await _host_for(session, manifest.engine, host, unit.at),
            engine=manifest.engine,
            kind="full",
            needs_parent=False,
            state="importing",
            blueprint=blueprint,
            disk_mib=blueprint.snapshot_mib,
            scheduled=False,
            wanted_by=unit.caller.actor,
            wanted_in=unit.caller.request_id,
            created_at=unit.at,
            updated_at=unit.at,
            next_attempt_at=unit.at,
            attempts=0,
        )
        await check_name(session, project, row.name)
        leases.take(row, self.pipeline.instance, unit.at)
        session.add(row)
        await session.flush()
        unit.target, unit.after = row.id, {"name": row.name, "host": row.host_id}
        unit.answer = lambda: Created[Snapshot](id=row.id, item=to_snapshot(row))
        return row

    async def _give_up(self, row: SnapshotRow, token: str) -> None:
        """Removes what may be on the host, and then the row; what cannot be done now is left to the
        pipeline."""
        with anyio.CancelScope(shield=True):
            gone = False
            with anyio.move_on_after(CLEAR_TIMEOUT_S), suppress(NexusError):
                await self.agents.of(row.host_id).delete_snapshot(row.id)
                gone = True
            async with self.db.write() as session:
                found = await leases.held(session, SnapshotRow, row.id, token)
                if found is not None and gone:
                    await session.delete(found)
                elif found is not None:
                    discard(found, datetime.now(UTC))
                    leases.release(found)
        self.pipeline.hint()

    async def _finish(self, snapshot_id: str, token: str, held: HostSnapshot) -> Snapshot:
        async with self.db.write() as session:
            row = await leases.held(session, SnapshotRow, snapshot_id, token)
            if row is None or row.state != "importing":
                raise Conflict(
                    "the import took so long that it was given up meanwhile",
                    suggestion="see what is left of it: nexus snapshot ls --state error",
                )
            row.state, row.held, row.updated_at = "ready", held, datetime.now(UTC)
            leases.release(row)
        return to_snapshot(row)


def _read(text: bytes) -> Manifest:
    """Raises BadArchive. What is in it becomes machines: it must be what a request could say."""
    try:
        manifest = Manifest.model_validate_json(text)
        of = manifest.blueprint
        VmSpec(
            vcpu=of.vcpu,
            mem_mib=of.mem_mib,
            kernel_args=of.kernel_args,
            tags=of.tags,
            restart_policy=of.restart_policy,
            user_data=of.user_data,
            vendor_data=of.vendor_data,
            config_drive=of.config_drive,
            ssh_keys=of.ssh_keys,
            rootfs_size_mib=of.rootfs_size_mib,
            rootfs_limits=of.rootfs_limits,
            drives=[_asked(drive) for drive in of.drives],
            nics=of.nics,
            balloon=of.balloon,
        )
    except ValidationError as error:
        raise BadArchive(f"{MANIFEST} is not understood: {error.errors()[0]['msg']}") from error
    if any(drive.volume is not None for drive in of.drives):
        raise BadArchive("one of its drives is a volume")
    return manifest


def _asked(drive: StoredDrive) -> DriveCreate:
    return DriveCreate(
        name=drive.name,
        size_mib=None if drive.read_only else drive.size_mib,
        image=drive.image.name if drive.image else None,
        read_only=drive.read_only,
        limits=drive.limits,
    )


def _check_shape(blueprint: Blueprint, held: HostSnapshot) -> None:
    """Raises BadArchive unless manager's and host's parts tell of the same machine."""
    machine = held.machine
    told = (blueprint.vcpu, blueprint.mem_mib, [drive.name for drive in blueprint.drives])
    if told != (machine.vcpu, machine.mem_mib, [drive.name for drive in machine.drives]):
        raise BadArchive("its parts tell of two different machines")
    if len(blueprint.nics) != len(machine.nics) or bool(blueprint.rootfs) != bool(machine.rootfs):
        raise BadArchive("its parts tell of two different machines")


async def _host_for(session: AsyncSession, engine: Engine, ref: str | None, now: datetime) -> str:
    """The host that is named, else the first healthy one that runs the engine."""
    query = select(HostRow).order_by(HostRow.id)
    if ref is not None:
        query = query.where(or_(HostRow.id == ref, HostRow.name == ref))
    hosts = (await session.scalars(query)).all()
    if ref is not None and not hosts:
        raise NotFound(f"there is no host {ref!r}", suggestion="nexus host ls")
    healthy = [host for host in hosts if is_healthy(host, now)]
    if not healthy:
        raise NoCapacity("no healthy host", suggestion="start an agent, or look at: nexus host ls")
    fitting = [host for host in healthy if host.engine == engine]
    if not fitting:
        raise InvalidState(
            f"the snapshot was taken with {engine}, and no host here runs that",
            suggestion="nexus host ls",
        )
    return fitting[0].id


async def _at_home(session: AsyncSession, project: str, blueprint: Blueprint) -> Blueprint:
    """The blueprint with this installation's images, by their content, and networks.

    A boot from the kernel needs kernel and initrd, and read-only drives are never copied: they
    must be here. Raises ImageNotReady. Other disks come with the snapshot.
    """
    contents = {image.sha256 for image in blueprint.images}
    query = select(ImageRow).where(ImageRow.project == project, ImageRow.sha256.in_(contents))
    # Locked, so that none is deleted between this look and the snapshot's row.
    query = query.order_by(ImageRow.id).with_for_update(read=True, key_share=True)
    known = {(row.kind, row.sha256): row for row in await session.scalars(query)}

    def here(image: StoredImage, *, needed: bool) -> StoredImage:
        row = known.get((image.kind, image.sha256))
        if row is not None:
            return image.model_copy(update={"id": row.id, "name": row.name})
        if needed:
            raise ImageNotReady(
                f"the {image.kind} {image.name} (sha256 {image.sha256}), which VMs of the "
                "snapshot boot, is not registered here",
                suggestion=f"nexus image upload FILE {image.name} --kind {image.kind}",
            )
        return image

    drives = [
        drive.model_copy(update={"image": here(drive.image, needed=drive.read_only)})
        if drive.image
        else drive
        for drive in blueprint.drives
    ]
    mine = select(NetworkRow.id).where(NetworkRow.project == project)
    networks = set(await session.scalars(mine))
    return blueprint.model_copy(
        update={
            "kernel": here(blueprint.kernel, needed=True),
            "initrd": here(blueprint.initrd, needed=True) if blueprint.initrd else None,
            "rootfs": here(blueprint.rootfs, needed=False) if blueprint.rootfs else None,
            "drives": drives,
            "nics": [
                nic if nic.network in networks else nic.model_copy(update={"network": None})
                for nic in blueprint.nics
            ],
        }
    )
