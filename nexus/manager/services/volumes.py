"""Volumes: making, changing and deleting them."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, Page
from nexus.api.errors import Conflict, InUse, NameTaken
from nexus.api.quotas import Resources
from nexus.api.vms import Vm
from nexus.api.volumes import Volume, VolumeChange, VolumeCreate
from nexus.ids import new_id
from nexus.manager import devices, etags, scheduler, wanting
from nexus.manager.agents import Agents
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, VmRow, VolumeRow
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services import quotas
from nexus.manager.services.hosts import is_healthy
from nexus.manager.services.vm_images import rootfs_of
from nexus.manager.services.vms import to_vm
from nexus.manager.services.volume_rows import (
    HOLDER,
    Holder,
    check_fits,
    check_free,
    find,
    holder_of,
    still_held,
    to_volume,
)
from nexus.manager.uow import Caller, UnitOfWork, change


class Volumes:
    """The rules of volumes. A volume is bound to a host when it is made; nothing happens there
    before a VM has it."""

    def __init__(self, db: Database, agents: Agents, pipeline: VmPipeline) -> None:
        self.db = db
        self.agents = agents
        self.pipeline = pipeline

    async def create(self, caller: Caller, request: VolumeCreate) -> Volume:
        """Makes the row. Raises NameTaken, QuotaExceeded, NoCapacity, ImageNotReady, or
        ValidationFailed for a size that its image does not fit into."""
        try:
            async with change(self.db, caller, "volume.create") as unit:
                image = None
                if request.image is not None:
                    image = await rootfs_of(unit.session, caller.project, request.image)
                size_mib = devices.first_size(request.name, request.size_mib, image)
                size_mib = size_mib or devices.size_of(image) or 0
                asked = Resources(disk_mib=size_mib)
                await quotas.admit(unit.session, caller.project, asked)
                row = VolumeRow(
                    id=new_id(),
                    project=caller.project,
                    name=request.name,
                    host_id=await _place(unit.session, size_mib, unit.at),
                    size_mib=size_mib,
                    image=image,
                    deleting=False,
                    created_at=unit.at,
                    updated_at=unit.at,
                )
                unit.session.add(row)
                unit.target = row.id
                unit.after = {"name": row.name, "size_mib": row.size_mib, "host_id": row.host_id}
                unit.answer = lambda: Created[Volume](id=row.id, item=to_volume(row, None))
                await unit.session.flush()
        except IntegrityError as error:
            raise name_taken(request.name) from error
        return to_volume(row, None)

    async def update(
        self, caller: Caller, ref: str, wanted: VolumeChange
    ) -> tuple[Volume, Vm | None]:
        """Renames a volume or makes it larger; answers it, and the VM that has to be told.

        A guest that runs with it sees the new size at once. Raises NotFound, NameTaken,
        NoCapacity, QuotaExceeded, PreconditionFailed, or Conflict for a size below its own.
        """
        told: VmRow | None = None
        try:
            async with change(self.db, caller, "volume.update", target=ref) as unit:
                row, vm = await locked(unit, ref)
                holder = await holder_of(unit.session, row)
                etags.expect(caller.if_match, to_volume(row, holder), f"the volume {row.name!r}")
                unit.before = {"name": row.name, "size_mib": row.size_mib}
                grown = await _grow(unit, row, wanted)
                if "name" in wanted.model_fields_set:
                    row.name = wanted.name
                unit.after = {"name": row.name, "size_mib": row.size_mib}
                if unit.after != unit.before:
                    row.updated_at = unit.at
                if vm is not None and row.leaving is None:
                    vm.drives = [devices.following(drive, row) for drive in vm.drives]
                    vm.updated_at = unit.at
                    if grown and vm.power != "deleted":
                        said = f"volume {row.name}: {row.size_mib} MiB"
                        wanting.change(unit, vm, "drive_changed", said)
                        self.pipeline.take(vm, unit.at)
                        told = vm
                await unit.session.flush()
                seen = to_volume(row, await holder_of(unit.session, row))
        except IntegrityError as error:
            raise name_taken(wanted.name) from error
        if told is None:
            return seen, None
        self.pipeline.begin(told)
        return seen, to_vm(told)

    async def delete(self, caller: Caller, ref: str) -> None:
        """Deletes a volume with what is on it.

        First no VM can get it any more, then its file goes, then its row; cut off anywhere, the
        same call finishes it. Raises NotFound, InUse, PreconditionFailed, or HostUnreachable: then
        it stays ``deleting``.
        """
        async with change(self.db, caller, "volume.delete", target=ref) as unit:
            row = await find(unit.session, caller.project, ref, lock=True)
            unit.target, unit.before = row.id, {"name": row.name, "size_mib": row.size_mib}
            holder = await holder_of(unit.session, row)
            etags.expect(caller.if_match, to_volume(row, holder), f"the volume {row.name!r}")
            check_free(row, holder)
            await _check_not_copied(unit.session, row)
            row.deleting, row.updated_at = True, unit.at
        await self.agents.of(row.host_id).delete_volume(row.id)
        async with change(self.db, caller, "volume.deleted", target=row.id) as unit:
            gone = await unit.session.get(VolumeRow, row.id, with_for_update=True)
            if gone is not None:
                await unit.session.delete(gone)

    async def get(self, project: str, ref: str) -> Volume:
        """A volume by its id or name. Raises NotFound."""
        async with self.db.read() as session:
            row = await find(session, project, ref)
            return to_volume(row, await holder_of(session, row))

    async def page(self, project: str, *, cursor: str | None, limit: int) -> Page[Volume]:
        """Volumes in the order they were made."""
        query = (
            select(VolumeRow, *HOLDER)
            .outerjoin(VmRow, VmRow.id == VolumeRow.vm_id)
            .where(VolumeRow.project == project)
        )
        if cursor is not None:
            query = query.where(VolumeRow.id > cursor)
        async with self.db.read() as session:
            rows = (await session.execute(query.order_by(VolumeRow.id).limit(limit + 1))).all()
        found = []
        for row, vm_id, vm_name, settled, drives in rows[:limit]:
            vm = None if vm_id is None else Holder(vm_id, vm_name, settled, drives)
            holder = None if vm is None else still_held(row, vm)
            found.append(to_volume(row, holder))
        return Page(
            items=found,
            next_cursor=rows[limit - 1][0].id if len(rows) > limit else None,
        )


async def locked(unit: UnitOfWork, ref: str) -> tuple[VolumeRow, VmRow | None]:
    """A volume and the VM that has it, both locked; the VM first, as everywhere.

    Raises NotFound, or Conflict when the volume changes hands at this moment.
    """
    session, project = unit.session, unit.caller.project
    vm_id = (await find(session, project, ref)).vm_id
    vm = await session.get(VmRow, vm_id, with_for_update=True) if vm_id is not None else None
    row = await find(session, project, ref, lock=True)
    unit.target = row.id
    if row.vm_id != (vm.id if vm is not None else None):
        raise Conflict(f"the volume {row.name!r} changes hands", suggestion="try again")
    return row, vm


def name_taken(name: str) -> NameTaken:
    """The refusal of a name that another volume has."""
    return NameTaken(
        f"there is a volume named {name!r} already",
        suggestion=f"choose another name, or: nexus volume rm {name}",
    )


async def _grow(unit: UnitOfWork, row: VolumeRow, wanted: VolumeChange) -> bool:
    """Whether it has become larger."""
    if "size_mib" not in wanted.model_fields_set or wanted.size_mib == row.size_mib:
        return False
    if wanted.size_mib < row.size_mib:
        raise Conflict(
            f"the volume {row.name!r} has {row.size_mib} MiB, and volumes never shrink",
            suggestion=f"ask for more than {row.size_mib} MiB",
        )
    asked = Resources(disk_mib=wanted.size_mib - row.size_mib)
    await quotas.admit(unit.session, row.project, asked)
    await check_fits(unit.session, row, wanted.size_mib)
    row.size_mib = wanted.size_mib
    return True


async def _check_not_copied(session: AsyncSession, row: VolumeRow) -> None:
    query = select(VolumeRow.name).where(VolumeRow.source_id == row.id).limit(1)
    copy = await session.scalar(query)
    if copy is not None:
        raise InUse(
            f"the volume {row.name!r} is being copied to {copy!r}",
            suggestion=f"finish it: nexus volume snapshot {row.name} {copy}; or give it up: "
            f"nexus volume rm {copy}",
        )


async def _place(session: AsyncSession, size_mib: int, now: datetime) -> str:
    """Where its VMs will be: the healthy host with the most memory whose disk can hold it."""
    rooms = [
        scheduler.HostRoom(
            id=host.id,
            healthy=is_healthy(host, now),
            mem_mib=host.capacity.mem_mib,
            promised_mem_mib=0,
            disk_mib=host.capacity.disk_mib,
        )
        for host in (await session.scalars(select(HostRow))).all()
    ]
    return scheduler.place(scheduler.Request(vcpu=0, mem_mib=0, disk_mib=size_mib), rooms).host_id
