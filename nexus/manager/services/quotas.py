"""Quotas of projects: setting them, and holding to them within the transaction of a change."""

from sqlalchemy import bindparam, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import Conflict, Forbidden
from nexus.api.quotas import ProjectQuota, Quota, Resources
from nexus.manager import quotas
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import QuotaRow, VmRow, VolumeRow
from nexus.manager.uow import SYSTEM, Caller, change

_ATTEMPTS = 3


_OF_PROJECT = select(QuotaRow).where(QuotaRow.project == bindparam("project")).with_for_update()


async def admit(session: AsyncSession, project: str, asked: Resources) -> None:
    """Lets a change pass that asks for so much more. Raises QuotaExceeded.

    Holds the project's quota until the transaction's end: who asks next counts what this one made.
    Call it before hosts are locked, so that all take their locks in one order.
    """
    row = await session.scalar(_OF_PROJECT, {"project": project})
    if row is not None and row.limits != Quota():
        quotas.check(project, row.limits, await used_by(session, project), asked)


async def used_by(session: AsyncSession, project: str) -> Resources:
    """What counts against a project's quota."""
    vms = select(
        func.count(VmRow.id),
        func.coalesce(func.sum(VmRow.vcpu), 0),
        func.coalesce(func.sum(VmRow.mem_mib), 0),
        func.coalesce(func.sum(VmRow.disk_mib), 0),
    ).where(VmRow.project == project, VmRow.power != "deleted")
    count, vcpu, mem_mib, disk_mib = (await session.execute(vms)).one()
    volumes = select(func.coalesce(func.sum(VolumeRow.size_mib), 0)).where(
        VolumeRow.project == project
    )
    on_volumes = (await session.execute(volumes)).scalar_one()
    snapshots = select(func.coalesce(func.sum(SnapshotRow.disk_mib), 0)).where(
        SnapshotRow.project == project, SnapshotRow.state.in_(("requested", "importing", "ready"))
    )
    in_snapshots = (await session.execute(snapshots)).scalar_one()
    return Resources(
        vms=int(count),
        vcpu=int(vcpu),
        mem_mib=int(mem_mib),
        disk_mib=int(disk_mib) + int(on_volumes) + int(in_snapshots),
    )


class Quotas:
    """Reading and setting quotas. Only an admin of the installation's own project sets them:
    those of another project could else lift the limit that was set for them."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def get(self, project: str) -> ProjectQuota:
        """A project's quota and what it has; one that nobody has set limits nothing."""
        async with self.db.read() as session:
            row = await session.get(QuotaRow, project)
            return _shown(project, row, await used_by(session, project))

    async def set(self, caller: Caller, project: str, limits: Quota) -> ProjectQuota:
        """Replaces all of a project's limits; what it has already stays. Raises Forbidden."""
        for _ in range(_ATTEMPTS):
            try:
                async with change(self.db, caller, "quota.set", target=project) as unit:
                    if caller.project != SYSTEM.project:
                        raise Forbidden(
                            f"quotas are set by admins of project {SYSTEM.project!r} alone",
                            suggestion="ask one of them",
                        )
                    row = await unit.session.get(QuotaRow, project, with_for_update=True)
                    if row is None:
                        row = QuotaRow(project=project, limits=Quota())
                        unit.session.add(row)
                    unit.before = row.limits.model_dump()
                    unit.after = limits.model_dump()
                    row.limits, row.updated_at = limits, unit.at
                    await unit.session.flush()
                    return _shown(project, row, await used_by(unit.session, project))
            except IntegrityError:
                continue  # Another request made the row first.
        raise Conflict("the quota is being set by others", suggestion="try again")


def _shown(project: str, row: QuotaRow | None, used: Resources) -> ProjectQuota:
    return ProjectQuota(
        project=project,
        limits=row.limits if row is not None else Quota(),
        used=used,
        updated_at=row.updated_at if row is not None else None,
    )
