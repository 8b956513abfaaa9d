"""VMs: finding them, and changing what is wanted of them."""

import functools
import re
from dataclasses import dataclass

from sqlalchemy import Select, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import NotFound
from nexus.api.vms import Vm, VmEvent, VmImage, VmNic, VmOrigin, VmTemplate
from nexus.manager import devices, etags, keys, lifecycle, wanting
from nexus.manager.db.columns import StoredImage, StoredOrigin
from nexus.manager.db.journal_tables import VmEventRow
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services.vm_filter import NO_FILTER, VmFilter
from nexus.manager.uow import Caller, UnitOfWork, change


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a list, and where the next part begins."""

    items: list[Vm]
    next_cursor: str | None


class VmService:
    """The rules of VMs. Every change is one transaction, then a start of the pipeline."""

    def __init__(self, db: Database, pipeline: VmPipeline) -> None:
        self.db = db
        self.pipeline = pipeline

    async def act(
        self,
        action: lifecycle.Action,
        ref: str,
        caller: Caller,
        *,
        stop_timeout_s: float | None = None,
    ) -> Vm:
        """Changes what is wanted of a VM. Asking for what is wanted already changes nothing.

        Raises NotFound, or InvalidState with what to do instead.
        """
        async with change(self.db, caller, f"vm.{action}", target=ref) as unit:
            row = await find_for(unit, ref)
            unit.before = wanting.shown(row)
            changed = wanting.act(unit, row, action, stop_timeout_s=stop_timeout_s)
            if changed:
                self.pipeline.take(row, unit.at)
            unit.after = wanting.shown(row)
        if changed:
            self.pipeline.begin(row)
        return to_vm(row)

    async def get(self, ref: str, project: str) -> Vm:
        """A VM by its id or name. Raises NotFound."""
        async with self.db.read() as session:
            return to_vm(await find(session, project, ref))

    async def done_before(self, done: keys.Done, project: str) -> list[Vm]:
        """The VMs that an earlier request with the same key was about, as they are now.

        Raises ``done`` when one of them is gone.
        """
        ids = done.ids
        async with self.db.read() as session:
            query = select(VmRow).where(VmRow.project == project, VmRow.id.in_(ids))
            found = {row.id: row for row in await session.scalars(query)}
        if not ids or found.keys() != set(ids):
            raise done
        return [to_vm(found[vm_id]) for vm_id in ids]

    async def page(
        self,
        project: str,
        narrowed: VmFilter = NO_FILTER,
        *,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Slice:
        """VMs in the order they were made, from behind ``cursor`` on."""
        query = select(VmRow).where(*narrowed.conditions(project))
        query = query.order_by(VmRow.id).limit(limit + 1)
        if cursor is not None:
            query = query.where(VmRow.id > cursor)
        async with self.db.read() as session:
            rows = (await session.scalars(query)).all()
        more = len(rows) > limit
        return Slice([to_vm(row) for row in rows[:limit]], rows[limit - 1].id if more else None)


def _queries(query: Select[VmRow]) -> tuple[Select[VmRow], Select[VmRow]]:
    """One for reading, and one that locks."""
    return query, query.with_for_update()


_IS_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OF_PROJECT = select(VmRow).where(VmRow.project == bindparam("project"))
_NAMED = _OF_PROJECT.where(VmRow.name == bindparam("ref"))
_BY_ID = _queries(_OF_PROJECT.where(VmRow.id == bindparam("ref")))
_BY_NAME = _queries(_NAMED.where(VmRow.power != "deleted"))
_BY_NAME_GOING = _queries(_NAMED.where(VmRow.power == "deleted").order_by(VmRow.id.desc()).limit(1))


async def find(session: AsyncSession, project: str, ref: str, *, lock: bool = False) -> VmRow:
    """A VM's row by id or name; of two with one name, the one that is not being deleted."""
    asked = {"project": project, "ref": ref}
    row = None
    if _IS_ID.fullmatch(ref):
        row = await session.scalar(_BY_ID[lock], asked)
    if row is None:
        row = await session.scalar(_BY_NAME[lock], asked)
    if row is None:
        row = await session.scalar(_BY_NAME_GOING[lock], asked)
    if row is None:
        raise NotFound(f"there is no VM {ref!r}", suggestion="nexus ls")
    return row


async def find_for(unit: UnitOfWork, ref: str) -> VmRow:
    """A VM's row, locked, for a change of it. Honours the caller's ``If-Match``.

    Raises NotFound, PreconditionFailed.
    """
    row = await find(unit.session, unit.caller.project, ref, lock=True)
    unit.target = row.id
    if unit.caller.if_match is not None:
        etags.expect(unit.caller.if_match, to_vm(row), f"VM {row.name!r}")
    return row


def to_vm(row: VmRow) -> Vm:
    """A row as the API shows it."""
    return Vm(
        id=row.id,
        name=row.name,
        project=row.project,
        state=row.state,
        error=row.error,
        vcpu=row.vcpu,
        mem_mib=row.mem_mib,
        kernel=_to_image(row.kernel),
        initrd=_to_image(row.initrd) if row.initrd else None,
        rootfs=_to_image(row.rootfs) if row.rootfs else None,
        kernel_args=row.kernel_args,
        nics=[
            VmNic(
                iface=nic.iface,
                mac=nic.mac,
                ip=nic.ip,
                gateway=nic.gateway,
                tap=nic.tap,
                limits=nic.limits,
                network=nic.network,
            )
            for nic in row.nics
        ],
        drives=devices.shown(row.root, row.drives),
        balloon=row.balloon,
        devices_error=row.devices_error,
        tags=row.tags,
        host_id=row.host_id,
        engine=row.engine,
        socket=row.socket,
        pid=row.pid,
        generation=row.generation,
        boot=row.boot,
        created_at=row.created_at,
        updated_at=row.updated_at,
        started_at=row.started_at,
        restart_policy=row.restart_policy,
        restarts=row.restarts,
        restart_at=row.restart_at,
        last_exit=row.last_exit,
        expires_at=row.expires_at,
        track_dirty_pages=row.track_dirty_pages,
        origin=_to_origin(row.origin) if row.origin else None,
        identity=row.identity,
        template=_to_template(row),
        progress=row.progress,
    )


def _to_origin(origin: StoredOrigin) -> VmOrigin:
    return VmOrigin(snapshot=origin.id, name=origin.name, boot=origin.boot)


def _to_template(row: VmRow) -> VmTemplate | None:
    if row.template_id is None or row.template_name is None or row.template_version is None:
        return None
    return VmTemplate(id=row.template_id, name=row.template_name, version=row.template_version)


@functools.lru_cache(maxsize=1024)
def _to_image(image: StoredImage) -> VmImage:
    return VmImage(id=image.id, kind=image.kind, name=image.name, sha256=image.sha256)


def to_event(row: VmEventRow) -> VmEvent:
    """An event's row as the API shows it."""
    return VmEvent(
        id=row.id,
        vm_id=row.vm_id,
        vm_name=row.vm_name,
        at=row.at,
        state=row.state,
        reason=row.reason,
        message=row.message,
        actor=row.actor,
        request_id=row.request_id,
    )
