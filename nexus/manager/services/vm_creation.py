"""Making VMs: one, or many alike, with everything decided in one transaction."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio.lowlevel
from sqlalchemy import bindparam, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, CreatedMany, Wire
from nexus.api.errors import Conflict, NameTaken, ValidationFailed
from nexus.api.quotas import Resources
from nexus.api.vm_snapshots import SnapshotClone
from nexus.api.vms import Vm, VmCreate
from nexus.ids import new_id
from nexus.manager import devices, scheduler
from nexus.manager.config import Settings
from nexus.manager.db.columns import Blueprint, StoredOrigin
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, VmRow, VolumeRow, WantedPower
from nexus.manager.pipelines.expiry import ExpiryPipeline
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services import quotas, volume_rows
from nexus.manager.services.hosts import is_healthy
from nexus.manager.services.template_use import TemplateUse
from nexus.manager.services.vm_expiry import deadline
from nexus.manager.services.vm_images import choose
from nexus.manager.services.vm_networks import AddressBook
from nexus.manager.services.vms import to_vm
from nexus.manager.uow import Caller, UnitOfWork, change

LONGEST_NAME = 63
_ATTEMPTS = 5
HEAD_START = 4
"""So many turns of the event loop it takes until a call to an agent is under way: it works on a VM
while the answer to who made it is written."""


# Made once: to put a query together takes as long as to run it.
_HOSTS = select(HostRow).with_for_update()
_PROMISED = select(VmRow.host_id, func.sum(VmRow.mem_mib)).group_by(VmRow.host_id)
_TAKEN = (
    select(VmRow.name)
    .where(
        VmRow.project == bindparam("project"),
        VmRow.name.in_(bindparam("names", expanding=True)),
        VmRow.power != "deleted",
    )
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Order:
    """VMs to be made of one blueprint, all of them or none."""

    blueprint: Blueprint
    names: Sequence[str | None]
    """One for each VM; None is a name to be made up."""
    power: WantedPower
    boot: int
    expires_at: datetime | None = None
    host_id: str | None = None
    """The only host that they may be on."""
    volumes: Sequence[VolumeRow] = ()
    """Locked; they become the first VM's."""
    origin: StoredOrigin | None = None
    """The snapshot that their first boot is loaded from."""
    use: TemplateUse | None = None
    """The template that they are of."""
    pool_id: str | None = None
    """The pool that they wait in."""
    because: str = "requested"
    """How the story of each begins."""


Draw = Callable[[UnitOfWork], Awaitable[Order]]
"""Says in the transaction itself what is to be made, with everything looked up and locked."""


class VmCreation:
    """The rules of a VM's first moment. Nothing happens on a host before the rows are there."""

    def __init__(
        self, db: Database, pipeline: VmPipeline, expiry: ExpiryPipeline, settings: Settings
    ) -> None:
        self.db = db
        self.pipeline = pipeline
        self.expiry = expiry
        self.settings = settings

    async def create(
        self, request: VmCreate, caller: Caller, use: TemplateUse | None = None
    ) -> list[Vm]:
        """Makes the rows with everything decided: images, hosts, addresses. All of them or none.

        With ``use`` they are of a template and have its images.

        Raises ImageNotReady, NoCapacity, QuotaExceeded, AddressPoolExhausted, NameTaken or
        ValidationFailed, or what ``volume_rows.choose`` raises; then there is no row.
        """
        devices.check(request)
        deadline(datetime.now(UTC), request.ttl, request.expires_at)
        names = names_of(request)

        async def draw(unit: UnitOfWork) -> Order:
            return await order_of(unit, request, names, use)

        answer = use.answer if use is not None else lambda vms: created(request, vms)
        return await self.make(caller, "vm.create", draw, answer)

    async def make(
        self, caller: Caller, action: str, draw: Draw, answer: Callable[[list[Vm]], Wire]
    ) -> list[Vm]:
        """Makes the VMs of an order. ``draw`` may be asked again when an address was taken
        meanwhile; ``answer`` is what the request answers with them.

        Raises what ``draw`` raises, NoCapacity, AddressPoolExhausted, NameTaken or Conflict.
        """
        names: Sequence[str | None] = ()
        for _ in range(_ATTEMPTS):
            try:
                async with change(self.db, caller, action) as unit:
                    order = await draw(unit)
                    names = order.names
                    rows = await self._make(unit, order)
                    unit.answer = lambda made=rows: answer([to_vm(row) for row in made])
            except IntegrityError as error:
                if "name" in str(error.orig):
                    raise name_taken(next(filter(None, names), "")) from error
                continue  # another manager took an address: choose again
            for row in rows:
                self.pipeline.begin(row)
            if rows[0].expires_at is not None:
                self.expiry.hint()
            if len(rows) == 1:
                for _ in range(HEAD_START):
                    await anyio.lowlevel.checkpoint()
            return [to_vm(row) for row in rows]
        raise Conflict("addresses are handed out too fast to get one", suggestion="try again")

    async def _make(self, unit: UnitOfWork, order: Order) -> list[VmRow]:
        session, project, of = unit.session, unit.caller.project, order.blueprint
        await check_free(session, project, [name for name in order.names if name is not None])
        await quotas.admit(session, project, _asked(order))
        hosts = await self._place(session, order, unit.at)
        addresses = await AddressBook.open(session, project, of.nics, hosts, len(hosts))
        rows: list[VmRow] = []
        for name, host in zip(order.names, hosts, strict=True):
            row = _new_row(unit, order, name, host)
            if row.vendor_data is None and order.origin is None:
                row.vendor_data = self.settings.vendor_data
            row.nics = addresses.nics_of(row.id, host, of.nics)
            if order.use is not None:
                order.use.mark(row)
            self.pipeline.take(row, unit.at)
            rows.append(row)
            unit.event(row, "requested", "created", f"{order.because} on host {host.name}")
        session.add_all(rows)
        await session.flush()
        session.add_all(addresses.taken)
        for volume in order.volumes:
            volume_rows.give(volume, rows[0].id, unit.at)
        unit.target = rows[0].id
        unit.after = {
            "name": rows[0].name,
            "vcpu": of.vcpu,
            "mem_mib": of.mem_mib,
            "power": rows[0].power,
        }
        if order.use is not None:
            unit.after["template"] = f"{order.use.name}@{order.use.version}"
        if order.use is not None and order.origin is None and order.boot:
            await order.use.want_booted(session, project, {row.host_id for row in rows}, unit.at)
        if order.origin is not None:
            unit.after["snapshot"] = order.origin.id
        if len(rows) > 1:
            unit.after["ids"] = [row.id for row in rows]
        return rows

    async def _place(self, session: AsyncSession, order: Order, now: datetime) -> list[HostRow]:
        """A host for each VM."""
        of = order.blueprint
        disk_mib = sum(map(devices.present_size, of.every_drive))
        hosts = (await session.scalars(_HOSTS)).all()
        promised = {host_id: int(mem_mib) for host_id, mem_mib in await session.execute(_PROMISED)}
        placements = scheduler.place_all(
            scheduler.Request(of.vcpu, of.mem_mib, disk_mib),
            len(order.names),
            [
                scheduler.HostRoom(
                    id=host.id,
                    healthy=is_healthy(host, now),
                    mem_mib=host.capacity.mem_mib,
                    promised_mem_mib=promised.get(host.id, 0),
                    disk_mib=host.capacity.disk_mib,
                )
                for host in hosts
                if order.host_id in (None, host.id)
            ],
            overcommit=self.settings.mem_overcommit,
        )
        by_id = {host.id: host for host in hosts}
        return [by_id[placement.host_id] for placement in placements]


def _asked(order: Order) -> Resources:
    """What all the VMs together take of the project's quota."""
    of, count = order.blueprint, len(order.names)
    return Resources(
        vms=count,
        vcpu=count * of.vcpu,
        mem_mib=count * of.mem_mib,
        disk_mib=count * sum(drive.own_mib for drive in of.every_drive),
    )


async def order_of(
    unit: UnitOfWork, request: VmCreate, names: Sequence[str | None], use: TemplateUse | None
) -> Order:
    """What a request asks for, with its images and volumes found and locked."""
    session, project = unit.session, unit.caller.project
    if use is None:
        images = await choose(session, project, request)
    else:
        images = await use.choose(session, project, request)
    root = devices.root_of(request, images.rootfs)
    attached = await volume_rows.choose(session, project, request)
    blueprint = Blueprint(
        vcpu=request.vcpu,
        mem_mib=request.mem_mib,
        kernel=images.kernel,
        initrd=images.initrd,
        rootfs=images.rootfs,
        kernel_args=request.kernel_args,
        rootfs_size_mib=root.size_mib if root else None,
        rootfs_limits=root.limits if root else None,
        drives=devices.drives_of(request, images.drives, attached),
        nics=request.nics,
        balloon=request.balloon,
        tags=request.tags,
        user_data=request.user_data,
        vendor_data=request.vendor_data,
        config_drive=request.config_drive,
        ssh_keys=request.ssh_keys,
        restart_policy=request.restart_policy,
        track_dirty_pages=request.track_dirty_pages,
    )
    booted = await use.booted(session, unit.at) if use is not None and request.start else None
    return Order(
        blueprint,
        names,
        power="running" if request.start else "stopped",
        boot=1 if request.start else 0,
        expires_at=deadline(unit.at, request.ttl, request.expires_at),
        host_id=next((volume.host_id for volume in attached.values()), None)
        or (booted.host_id if booted else None),
        volumes=[*attached.values()],
        origin=StoredOrigin(id=booted.id, name=booted.name, boot=1) if booted else None,
        use=use,
    )


def created(request: VmCreate | SnapshotClone, vms: list[Vm]) -> Created[Vm]:
    """What a create answers: the VM, and all of them if there was a ``count``."""
    if request.count is None:
        return Created(id=vms[0].id, item=vms[0])
    return CreatedMany(id=vms[0].id, item=vms[0], items=vms)


def names_of(request: VmCreate | SnapshotClone) -> list[str | None]:
    """The names of the VMs asked for: ``web``, or with a count ``web-1`` to ``web-20``.

    None is a name to be made up. Raises ValidationFailed when a number makes a name too long.
    """
    if request.count is None:
        return [request.name]
    if request.name is None:
        return [None] * request.count
    names = [f"{request.name}-{number}" for number in range(1, request.count + 1)]
    if len(names[-1]) > LONGEST_NAME:
        raise ValidationFailed(
            f"name: {names[-1]!r} is longer than {LONGEST_NAME} characters",
            suggestion="give a shorter name; VMs made together get a number behind it",
        )
    return [*names]


def _new_row(unit: UnitOfWork, order: Order, name: str | None, host: HostRow) -> VmRow:
    of, origin, vm_id = order.blueprint, order.origin, new_id()
    return VmRow(
        id=vm_id,
        project=unit.caller.project,
        name=name or f"vm-{vm_id[-12:]}",
        host_id=host.id,
        engine=host.engine,
        created_at=unit.at,
        updated_at=unit.at,
        vcpu=of.vcpu,
        mem_mib=of.mem_mib,
        kernel=of.kernel,
        initrd=of.initrd,
        rootfs=of.rootfs,
        rootfs_size_mib=of.rootfs_size_mib,
        rootfs_limits=of.rootfs_limits,
        drives=of.drives,
        kernel_args=of.kernel_args,
        balloon=of.balloon,
        tags=of.tags,
        user_data=of.user_data,
        vendor_data=of.vendor_data,
        config_drive=of.config_drive,
        ssh_keys=of.ssh_keys,
        restart_policy=of.restart_policy,
        track_dirty_pages=of.track_dirty_pages,
        origin_id=origin.id if origin else None,
        origin_name=origin.name if origin else None,
        origin_boot=origin.boot if origin else None,
        pool_id=order.pool_id,
        expires_at=order.expires_at,
        power=order.power,
        boot=order.boot,
        generation=1,
        stop_timeout_s=10.0,
        wanted_by=unit.caller.actor,
        wanted_in=unit.caller.request_id,
        unsettled=True,
        settled_generation=0,
        state="requested",
        next_attempt_at=unit.at,
        attempts=0,
    )


async def check_free(session: AsyncSession, project: str, names: Sequence[str]) -> None:
    """Raises NameTaken when a VM that is not being deleted has one of the names."""
    asked = {"project": project, "names": names}
    taken = await session.scalar(_TAKEN, asked) if names else None
    if taken is not None:
        raise name_taken(taken)


def name_taken(name: str) -> NameTaken:
    """The refusal of a name that another VM has."""
    return NameTaken(
        f"there is a VM named {name!r} already",
        suggestion=f"choose another name, or: nexus rm {name}",
    )
