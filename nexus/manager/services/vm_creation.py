"""Making VMs: one, or many alike, with everything decided in one transaction."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, CreatedMany
from nexus.api.errors import Conflict, NameTaken, ValidationFailed
from nexus.api.quotas import Resources
from nexus.api.vms import Vm, VmCreate
from nexus.ids import new_id
from nexus.manager import devices, scheduler
from nexus.manager.config import Settings
from nexus.manager.db.columns import StoredDrive
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.pipelines.expiry import ExpiryPipeline
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services import quotas, volumes
from nexus.manager.services.hosts import is_healthy
from nexus.manager.services.vm_expiry import deadline
from nexus.manager.services.vm_images import VmImages, choose
from nexus.manager.services.vm_networks import AddressBook
from nexus.manager.services.vms import to_vm
from nexus.manager.uow import Caller, UnitOfWork, change

LONGEST_NAME = 63
_ATTEMPTS = 5


class VmCreation:
    """The rules of a VM's first moment. Nothing happens on a host before the rows are there."""

    def __init__(
        self, db: Database, pipeline: VmPipeline, expiry: ExpiryPipeline, settings: Settings
    ) -> None:
        self.db = db
        self.pipeline = pipeline
        self.expiry = expiry
        self.settings = settings

    async def create(self, request: VmCreate, caller: Caller) -> list[Vm]:
        """Makes the rows with everything decided: images, hosts, addresses. All of them or none.

        Raises ImageNotReady, NoCapacity, QuotaExceeded, AddressPoolExhausted, NameTaken or
        ValidationFailed, or what ``volumes.choose`` raises; then there is no row.
        """
        devices.check(request)
        deadline(datetime.now(UTC), request.ttl, request.expires_at)
        names = names_of(request)
        for _ in range(_ATTEMPTS):
            try:
                async with change(self.db, caller, "vm.create") as unit:
                    rows = await self._create(unit, request, names)
            except IntegrityError as error:
                if "name" in str(error.orig):
                    raise name_taken(request.name or "") from error
                continue  # another manager took an address: choose again
            for row in rows:
                self.pipeline.begin(row)
            if rows[0].expires_at is not None:
                self.expiry.hint()
            return [to_vm(row) for row in rows]
        raise Conflict("addresses are handed out too fast to get one", suggestion="try again")

    async def _create(
        self, unit: UnitOfWork, request: VmCreate, names: Sequence[str | None]
    ) -> list[VmRow]:
        session, project = unit.session, unit.caller.project
        await check_free(session, project, [name for name in names if name is not None])
        images = await choose(session, project, request)
        root = devices.root_of(request, images.rootfs)
        attached = await volumes.choose(session, project, request)
        drives = devices.drives_of(request, images.drives, attached)
        disk_mib = sum(map(devices.present_size, [*drives, root] if root else drives))
        await quotas.admit(session, project, _asked(request, len(names), drives, root))
        where = next((volume.host_id for volume in attached.values()), None)
        hosts = await self._place(session, request, disk_mib, len(names), unit.at, where)
        addresses = await AddressBook.open(session, project, request.nics, hosts, len(names))
        rows: list[VmRow] = []
        for name, host in zip(names, hosts, strict=True):
            vm_id = new_id()
            row = _new_row(unit, request, vm_id, name, host, images)
            row.nics = addresses.nics_of(vm_id, host, request.nics)
            row.drives = drives
            if root is not None:
                row.rootfs_size_mib, row.rootfs_limits = root.size_mib, root.limits
            self.pipeline.take(row, unit.at)
            rows.append(row)
            unit.event(row, "requested", "created", f"requested on host {host.name}")
        session.add_all(rows)
        await session.flush()
        session.add_all(addresses.taken)
        for volume in attached.values():
            volume.vm_id, volume.updated_at = rows[0].id, unit.at
        unit.answer = lambda: created(request, [to_vm(row) for row in rows])
        unit.target = rows[0].id
        unit.after = {
            "name": rows[0].name,
            "vcpu": request.vcpu,
            "mem_mib": request.mem_mib,
            "power": rows[0].power,
        }
        if request.count is not None:
            unit.after["ids"] = [row.id for row in rows]
        return rows

    async def _place(
        self,
        session: AsyncSession,
        request: VmCreate,
        disk_mib: int,
        count: int,
        now: datetime,
        where: str | None,
    ) -> list[HostRow]:
        """A host for each VM; ``where`` is the only one that it may be."""
        hosts = (await session.scalars(select(HostRow).with_for_update())).all()
        sums = select(VmRow.host_id, func.sum(VmRow.mem_mib)).group_by(VmRow.host_id)
        promised = {host_id: int(mem_mib) for host_id, mem_mib in await session.execute(sums)}
        placements = scheduler.place_all(
            scheduler.Request(request.vcpu, request.mem_mib, disk_mib),
            count,
            [
                scheduler.HostRoom(
                    id=host.id,
                    healthy=is_healthy(host, now),
                    mem_mib=host.capacity.mem_mib,
                    promised_mem_mib=promised.get(host.id, 0),
                    disk_mib=host.capacity.disk_mib,
                )
                for host in hosts
                if where in (None, host.id)
            ],
            overcommit=self.settings.mem_overcommit,
        )
        by_id = {host.id: host for host in hosts}
        return [by_id[placement.host_id] for placement in placements]


def _asked(
    request: VmCreate, count: int, drives: Sequence[StoredDrive], root: StoredDrive | None
) -> Resources:
    """What all the VMs together take of the project's quota."""
    disk_mib = sum(drive.own_mib for drive in ([*drives, root] if root else drives))
    return Resources(
        vms=count,
        vcpu=count * request.vcpu,
        mem_mib=count * request.mem_mib,
        disk_mib=count * disk_mib,
    )


def created(request: VmCreate, vms: list[Vm]) -> Created[Vm]:
    """What a create answers: the VM, and all of them if there was a ``count``."""
    if request.count is None:
        return Created(id=vms[0].id, item=vms[0])
    return CreatedMany(id=vms[0].id, item=vms[0], items=vms)


def names_of(request: VmCreate) -> list[str | None]:
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


def _new_row(
    unit: UnitOfWork,
    request: VmCreate,
    vm_id: str,
    name: str | None,
    host: HostRow,
    images: VmImages,
) -> VmRow:
    return VmRow(
        id=vm_id,
        project=unit.caller.project,
        name=name or f"vm-{vm_id[-12:]}",
        host_id=host.id,
        engine=host.engine,
        created_at=unit.at,
        updated_at=unit.at,
        vcpu=request.vcpu,
        mem_mib=request.mem_mib,
        kernel=images.kernel,
        initrd=images.initrd,
        rootfs=images.rootfs,
        kernel_args=request.kernel_args,
        balloon=request.balloon,
        tags=request.tags,
        user_data=request.user_data,
        ssh_keys=request.ssh_keys,
        restart_policy=request.restart_policy,
        expires_at=deadline(unit.at, request.ttl, request.expires_at),
        power="running" if request.start else "stopped",
        boot=1 if request.start else 0,
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
    query = select(VmRow.name).where(
        VmRow.project == project, VmRow.name.in_(names), VmRow.power != "deleted"
    )
    taken = await session.scalar(query.limit(1)) if names else None
    if taken is not None:
        raise name_taken(taken)


def name_taken(name: str) -> NameTaken:
    """The refusal of a name that another VM has."""
    return NameTaken(
        f"there is a VM named {name!r} already",
        suggestion=f"choose another name, or: nexus rm {name}",
    )
