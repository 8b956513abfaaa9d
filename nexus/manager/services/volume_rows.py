"""Rows of volumes: finding them, whose they are, and showing them."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import Conflict, InUse, InvalidState, NoCapacity, NotFound, ValidationFailed
from nexus.api.vms import VmCreate, VmImage
from nexus.api.volumes import Volume, VolumeState
from nexus.manager.db.columns import StoredDrive
from nexus.manager.db.tables import HostRow, VmRow, VolumeRow


@dataclass(frozen=True, slots=True)
class Holder:
    """The VM that has a volume, or has not let go of it yet."""

    id: str
    name: str
    settled_generation: int
    drives: list[StoredDrive]

    def drive_of(self, volume_id: str) -> str | None:
        """What it calls the volume."""
        drives = (d.name for d in self.drives if d.volume is not None and d.volume.id == volume_id)
        return next(drives, None)


HOLDER = (VmRow.id, VmRow.name, VmRow.settled_generation, VmRow.drives)
"""The columns that make a Holder."""


async def find(session: AsyncSession, project: str, ref: str, *, lock: bool = False) -> VolumeRow:
    """A volume's row by id or name. Raises NotFound."""
    query = select(VolumeRow).where(VolumeRow.project == project)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    row = (await session.scalars(query.where(VolumeRow.id == ref))).one_or_none()
    if row is None:
        row = (await session.scalars(query.where(VolumeRow.name == ref))).one_or_none()
    if row is None:
        raise NotFound(f"there is no volume {ref!r}", suggestion="nexus volume ls")
    return row


async def holder_of(session: AsyncSession, row: VolumeRow) -> Holder | None:
    """Who has a volume; None when it is free."""
    if row.vm_id is None:
        return None
    found = (await session.execute(select(*HOLDER).where(VmRow.id == row.vm_id))).one_or_none()
    return None if found is None else still_held(row, Holder(*found))


def still_held(row: VolumeRow, holder: Holder) -> Holder | None:
    """None once the host has let go of a volume that was detached."""
    gone = row.leaving is not None and holder.settled_generation >= row.leaving
    return None if gone else holder


def to_volume(row: VolumeRow, holder: Holder | None) -> Volume:
    """A row as the API shows it."""
    image = row.image
    return Volume(
        id=row.id,
        name=row.name,
        project=row.project,
        state=_state(row, holder),
        size_mib=row.size_mib,
        image=VmImage(**image.model_dump(exclude={"size_bytes"})) if image else None,
        host_id=row.host_id,
        vm_id=holder.id if holder else None,
        vm_name=holder.name if holder else None,
        drive=holder.drive_of(row.id) if holder else None,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _state(row: VolumeRow, holder: Holder | None) -> VolumeState:
    if row.deleting:
        return "deleting"
    if row.source_id is not None:
        return "copying"
    if holder is None:
        return "free"
    return "attached" if row.leaving is None else "detaching"


def check_free(row: VolumeRow, holder: Holder | None) -> None:
    """Raises InUse while a VM has it."""
    if holder is None:
        return
    if row.leaving is not None:
        raise InUse(
            f"VM {holder.name!r} is letting go of the volume {row.name!r}",
            suggestion=f"wait until it is free: nexus volume show {row.name}",
        )
    raise InUse(
        f"VM {holder.name!r} has the volume {row.name!r}",
        suggestion=f"nexus volume detach {row.name}, or nexus rm {holder.name}",
    )


def check_whole(row: VolumeRow) -> None:
    """Raises InvalidState for one that is being copied, or deleted."""
    if row.deleting:
        raise InvalidState(
            f"the volume {row.name!r} is being deleted",
            suggestion=f"finish it: nexus volume rm {row.name}",
        )
    if row.source_id is not None:
        raise InvalidState(
            f"the volume {row.name!r} is not copied whole",
            suggestion=f"finish it: nexus volume snapshot {row.source_id} {row.name}",
        )


async def check_fits(session: AsyncSession, row: VolumeRow, size_mib: int) -> None:
    """Raises NoCapacity for a volume larger than its host's disk."""
    host = await session.get(HostRow, row.host_id)
    if host is not None and size_mib > host.capacity.disk_mib:
        raise NoCapacity(
            f"the volume {row.name!r} would have {size_mib} MiB, and its host has "
            f"{host.capacity.disk_mib} MiB",
            suggestion="ask for less",
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
        found[name] = row = await find(session, project, ref)
        check_free(row, await holder_of(session, row))
        check_whole(row)
    if len({row.id for row in found.values()}) < len(found):
        raise ValidationFailed("two drives are the same volume", suggestion="leave one out")
    if len({row.host_id for row in found.values()}) > 1:
        names = ", ".join(sorted(row.name for row in found.values()))
        raise Conflict(
            f"the volumes {names} lie on different hosts, so no VM can have them all",
            suggestion="nexus volume ls shows where each one lies",
        )
    return found


def give(row: VolumeRow, vm_id: str, at: datetime) -> None:
    """From now on the VM has it."""
    row.vm_id, row.leaving, row.updated_at = vm_id, None, at
