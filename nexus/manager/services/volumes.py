"""Volumes: making them, giving them to VMs, deleting them."""

from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, Page
from nexus.api.errors import Conflict, InUse, InvalidState, NameTaken, NotFound, ValidationFailed
from nexus.api.quotas import Resources
from nexus.api.vms import VmCreate
from nexus.api.volumes import Volume, VolumeCreate
from nexus.ids import new_id
from nexus.manager import scheduler
from nexus.manager.agents import Agents
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, VmRow, VolumeRow
from nexus.manager.services import quotas
from nexus.manager.services.hosts import is_healthy
from nexus.manager.uow import Caller, change


class Volumes:
    """The rules of volumes. A volume is bound to a host when it is made; nothing happens there
    before a VM has it."""

    def __init__(self, db: Database, agents: Agents) -> None:
        self.db = db
        self.agents = agents

    async def create(self, caller: Caller, request: VolumeCreate) -> Volume:
        """Makes the row. Raises NameTaken, QuotaExceeded or NoCapacity."""
        try:
            async with change(self.db, caller, "volume.create") as unit:
                asked = Resources(disk_mib=request.size_mib)
                await quotas.admit(unit.session, caller.project, asked)
                row = VolumeRow(
                    id=new_id(),
                    project=caller.project,
                    name=request.name,
                    host_id=await _place(unit.session, request.size_mib, unit.at),
                    size_mib=request.size_mib,
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
            raise NameTaken(
                f"there is a volume named {request.name!r} already",
                suggestion=f"choose another name, or: nexus volume rm {request.name}",
            ) from error
        return to_volume(row, None)

    async def delete(self, caller: Caller, ref: str) -> None:
        """Deletes a volume with what is on it.

        First no VM can get it any more, then its file goes, then its row; cut off anywhere, the
        same call finishes it. Raises NotFound, InUse, or HostUnreachable: then it stays
        ``deleting``.
        """
        async with change(self.db, caller, "volume.delete", target=ref) as unit:
            row = await find(unit.session, caller.project, ref, lock=True)
            unit.target, unit.before = row.id, {"name": row.name, "size_mib": row.size_mib}
            await _check_free(unit.session, row)
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
            return to_volume(row, await _owner(session, row))

    async def page(self, project: str, *, cursor: str | None, limit: int) -> Page[Volume]:
        """Volumes in the order they were made."""
        query = (
            select(VolumeRow, VmRow.name)
            .outerjoin(VmRow, VmRow.id == VolumeRow.vm_id)
            .where(VolumeRow.project == project)
        )
        if cursor is not None:
            query = query.where(VolumeRow.id > cursor)
        async with self.db.read() as session:
            rows = (await session.execute(query.order_by(VolumeRow.id).limit(limit + 1))).all()
        return Page(
            items=[to_volume(row, vm_name) for row, vm_name in rows[:limit]],
            next_cursor=rows[limit - 1][0].id if len(rows) > limit else None,
        )


async def choose(session: AsyncSession, project: str, request: VmCreate) -> dict[str, VolumeRow]:
    """The volumes that a new VM asks for, by its drives' names; locked, so that it gets them.

    Raises NotFound, InUse, InvalidState, ValidationFailed for one that is asked for twice, or
    Conflict for volumes that lie on several hosts.
    """
    refs = {drive.name: drive.volume for drive in request.drives if drive.volume is not None}
    if not refs:
        return {}
    # In one order everywhere: two requests for the same volumes must not wait for each other.
    asked = or_(VolumeRow.id.in_(refs.values()), VolumeRow.name.in_(refs.values()))
    query = select(VolumeRow).where(VolumeRow.project == project, asked).order_by(VolumeRow.id)
    await session.execute(query.with_for_update())
    found = {}
    for name, ref in refs.items():
        found[name] = await find(session, project, ref)
        await _check_free(session, found[name])
        if found[name].deleting:
            raise InvalidState(
                f"the volume {found[name].name!r} is being deleted", suggestion="nexus volume ls"
            )
    if len({row.id for row in found.values()}) < len(found):
        raise ValidationFailed("two drives are the same volume", suggestion="leave one out")
    if len({row.host_id for row in found.values()}) > 1:
        names = ", ".join(sorted(row.name for row in found.values()))
        raise Conflict(
            f"the volumes {names} lie on different hosts, so no VM can have them all",
            suggestion="nexus volume ls shows where each one lies",
        )
    return found


async def find(session: AsyncSession, project: str, ref: str, *, lock: bool = False) -> VolumeRow:
    """A volume's row by id or name. Raises NotFound."""
    query = select(VolumeRow).where(VolumeRow.project == project)
    if lock:
        query = query.with_for_update()
    row = (await session.scalars(query.where(VolumeRow.id == ref))).one_or_none()
    if row is None:
        row = (await session.scalars(query.where(VolumeRow.name == ref))).one_or_none()
    if row is None:
        raise NotFound(f"there is no volume {ref!r}", suggestion="nexus volume ls")
    return row


def to_volume(row: VolumeRow, vm_name: str | None) -> Volume:
    """A row as the API shows it."""
    return Volume(
        id=row.id,
        name=row.name,
        project=row.project,
        state="deleting" if row.deleting else "attached" if row.vm_id else "free",
        size_mib=row.size_mib,
        host_id=row.host_id,
        vm_id=row.vm_id,
        vm_name=vm_name,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


async def _owner(session: AsyncSession, row: VolumeRow) -> str | None:
    if row.vm_id is None:
        return None
    return await session.scalar(select(VmRow.name).where(VmRow.id == row.vm_id))


async def _check_free(session: AsyncSession, row: VolumeRow) -> None:
    if row.vm_id is not None:
        owner = await _owner(session, row)
        raise InUse(
            f"VM {owner!r} has the volume {row.name!r}",
            suggestion=f"it is free when that VM is gone: nexus rm {owner}",
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
