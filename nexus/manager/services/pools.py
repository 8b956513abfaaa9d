"""Taking VMs from pools: they are loaded and stand still, so what is left to do is a resume."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from sqlalchemy import Select, func, select
from sqlalchemy.exc import IntegrityError

from nexus.api.vms import Vm, VmCreate
from nexus.manager import devices, wanting
from nexus.manager.counts import Counts
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.db.template_tables import PrebootRow
from nexus.manager.services import preboots
from nexus.manager.services.hosts import is_healthy
from nexus.manager.services.template_use import TemplateUse
from nexus.manager.services.vm_creation import VmCreation, check_free, name_taken, names_of
from nexus.manager.services.vm_expiry import deadline
from nexus.manager.services.vms import to_vm
from nexus.manager.uow import Caller, UnitOfWork, change


class _NoneLeft(Exception):
    """Others were faster."""


class Pools:
    """The rules of taking. How pools are filled is in ``pipelines/preboots.py``."""

    def __init__(
        self, db: Database, creation: VmCreation, counts: Counts, hint: Callable[[], None]
    ) -> None:
        self.db = db
        self.creation = creation
        self.counts = counts
        self.hint = hint

    async def take(self, caller: Caller, use: TemplateUse, request: VmCreate) -> list[Vm] | None:
        """VMs of a pool, with the names and terms that were asked for: all of them or none. None
        when the pools do not hold so many; then nothing was done.

        Raises NameTaken or ValidationFailed.
        """
        names = names_of(request)
        deadline(datetime.now(UTC), request.ttl, request.expires_at)
        async with self.db.read() as session:
            count = select(func.count()).select_from(_waiting(use).subquery())
            if int(await session.scalar(count) or 0) < len(names):
                return None
        try:
            async with change(self.db, caller, "vm.create") as unit:
                rows = await self._take(unit, use, request, names)
                unit.answer = lambda: use.answer([to_vm(row) for row in rows])
        except _NoneLeft:
            return None
        except IntegrityError as error:
            raise name_taken(request.name or "") from error
        for row in rows:
            self.creation.pipeline.begin(row)
        if rows[0].expires_at is not None:
            self.creation.expiry.hint()
        self.hint()
        self.counts.taken(caller.project, use.name, len(rows))
        return [to_vm(row) for row in rows]

    async def _take(
        self, unit: UnitOfWork, use: TemplateUse, request: VmCreate, names: Sequence[str | None]
    ) -> list[VmRow]:
        session, project = unit.session, unit.caller.project
        await check_free(session, project, [name for name in names if name is not None])
        query = _waiting(use).order_by(VmRow.id).limit(len(names))
        rows = (await session.scalars(query.with_for_update(of=VmRow, skip_locked=True))).all()
        hosts = await session.scalars(
            select(HostRow).where(HostRow.id.in_({row.host_id for row in rows}))
        )
        if len(rows) < len(names) or not all(is_healthy(host, unit.at) for host in hosts):
            raise _NoneLeft
        of_them = PrebootRow.id.in_({row.pool_id for row in rows})
        await preboots.look_at(session, of_them, unit.at)
        for row, name in zip(rows, names, strict=True):
            use.mark(row)
            row.pool_id, row.name = None, name or f"vm-{row.id[-12:]}"
            row.tags, row.restart_policy = request.tags, request.restart_policy
            row.rootfs_limits = devices.simplified(request.rootfs_limits)
            row.expires_at = deadline(unit.at, request.ttl, request.expires_at)
            row.created_at, row.power, row.state = unit.at, "running", "requested"
            wanting.anew(unit, row)
            unit.event(row, "requested", "created", f"taken from the pool of template {use.name}")
            self.creation.pipeline.take(row, unit.at)
        unit.target = rows[0].id
        unit.after = {"name": rows[0].name, "template": f"{use.name}@{use.version}"}
        if len(rows) > 1:
            unit.after["ids"] = [row.id for row in rows]
        await session.flush()
        return [*rows]


def _waiting(use: TemplateUse) -> Select[VmRow]:
    """VMs of the version that are loaded and stand still."""
    return (
        select(VmRow)
        .join(PrebootRow, PrebootRow.id == VmRow.pool_id)
        .where(PrebootRow.template_id == use.template_id, PrebootRow.version == use.version)
        .where(PrebootRow.state == "ready", VmRow.power == "paused", VmRow.state == "paused")
        .where(VmRow.unsettled.is_(False))
    )
