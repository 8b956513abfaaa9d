"""Prebooted VMs of templates: asking for them, and finding the one that a new VM can be a clone of.

How they come about is in ``pipelines/preboots.py``.
"""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.templates import TemplatePreboot
from nexus.ids import new_id
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.db.template_tables import PrebootRow
from nexus.manager.services.hosts import is_healthy

AGAIN_AFTER = timedelta(minutes=5)
"""How long one that failed is not tried again."""


async def ready(
    session: AsyncSession, template_id: str, version: int, now: datetime
) -> SnapshotRow | None:
    """The snapshot that a VM of this version can be a clone of, locked so that it stays; the one
    on the host with the most memory left. One that does not fit its host any more is not taken,
    and looked at anew."""
    query = (
        select(PrebootRow, SnapshotRow, HostRow)
        .join(SnapshotRow, SnapshotRow.id == PrebootRow.snapshot_id)
        .join(HostRow, HostRow.id == PrebootRow.host_id)
        .where(PrebootRow.template_id == template_id, PrebootRow.version == version)
        .where(PrebootRow.state == "ready", SnapshotRow.state == "ready")
        .order_by(PrebootRow.id)
        .with_for_update(of=SnapshotRow)
    )
    found: list[tuple[int, SnapshotRow]] = []
    unfit: list[str] = []
    for row, snapshot, host in await session.execute(query):
        if host.engine != snapshot.engine or host.engine_version != row.vmm_version:
            unfit.append(row.id)
        elif is_healthy(host, now):
            found.append((host.capacity.mem_available_mib, snapshot))
    if unfit:
        await look_at(session, PrebootRow.id.in_(unfit), now)
    return max(found, key=lambda each: each[0])[1] if found else None


async def want(
    session: AsyncSession,
    project: str,
    template: str,
    which: tuple[str, int, str],
    now: datetime,
) -> None:
    """Asks for a prebooted VM: of a template's id and version, on a host. One is enough.

    One that failed is tried again after a while; one whose snapshot is gone is looked at anew.
    """
    template_id, version, host_id = which
    query = select(PrebootRow).where(
        PrebootRow.template_id == template_id,
        PrebootRow.version == version,
        PrebootRow.host_id == host_id,
    )
    row = await session.scalar(query)
    if row is None:
        row_id = new_id()
        session.add(
            PrebootRow(
                id=row_id,
                project=project,
                template_id=template_id,
                template_name=template,
                version=version,
                host_id=host_id,
                state="wanted",
                vm_name=f"preboot-{row_id[-12:]}",
                unsettled=True,
                created_at=now,
                updated_at=now,
                next_attempt_at=now,
                attempts=0,
            )
        )
        await session.flush()
    elif row.state == "failed" and row.updated_at + AGAIN_AFTER <= now:
        failed = and_(PrebootRow.id == row.id, PrebootRow.state == "failed")
        await look_at(session, failed, now, state="wanted", message=None, updated_at=now)
    elif row.state == "ready":
        await look_at(session, PrebootRow.id == row.id, now)


async def look_at(
    session: AsyncSession, which: ColumnElement[bool], now: datetime, **values: object
) -> None:
    """Has rows looked at, but for one that its worker has at this very moment.

    Who makes VMs has locked hosts or VMs of a pool by now, and the worker wants those while it has
    the row: so nobody may wait for it here. What that loses is asked for again by the next VM, or
    found when a pool is looked at in its turn.
    """
    free = select(PrebootRow.id).where(which).with_for_update(skip_locked=True)
    await session.execute(
        update(PrebootRow)
        .where(PrebootRow.id.in_(free))
        .values(unsettled=True, next_attempt_at=now, **values)
        .execution_options(synchronize_session=False)
    )


async def look_again(session: AsyncSession, template_id: str, now: datetime) -> None:
    """Has those of a template looked at: it has another version by now, or is gone."""
    await session.execute(
        update(PrebootRow)
        .where(PrebootRow.template_id == template_id)
        .values(unsettled=True, next_attempt_at=now)
    )


async def of_template(session: AsyncSession, template_id: str) -> list[TemplatePreboot]:
    """All of a template's, oldest first."""
    query = select(PrebootRow).where(PrebootRow.template_id == template_id)
    waiting = select(VmRow.pool_id, func.count()).where(
        VmRow.pool_id.is_not(None), VmRow.power == "paused", VmRow.state == "paused"
    )
    counts = {row[0]: row[1] for row in await session.execute(waiting.group_by(VmRow.pool_id))}
    return [
        TemplatePreboot(
            id=row.id,
            version=row.version,
            host_id=row.host_id,
            state=row.state,
            message=row.message,
            vm_name=row.vm_name,
            snapshot_id=row.snapshot_id,
            vmm_version=row.vmm_version,
            pooled=counts.get(row.id, 0),
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        for row in await session.scalars(query.order_by(PrebootRow.id))
    ]
