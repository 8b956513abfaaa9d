"""Booting a template's VM once on each host, to keep it as a snapshot: lease → look → step.

``wanted → booting → capturing → ready``; it goes when it is of no use any more. The VM that is
booted for it is one like any other, with a name of its own and an end in case all managers die. A
manager may be killed at any statement: every step is one transaction. See docs/templates.md.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
import structlog
from sqlalchemy import Select, select, true
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Ok
from nexus.api.errors import AddressPoolExhausted, InUse, NexusError, NoCapacity, QuotaExceeded
from nexus.api.guest import GuestInfo
from nexus.ids import new_id
from nexus.manager import specs, wanting
from nexus.manager.agents import Agents
from nexus.manager.db.columns import StoredOrigin
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.db.template_tables import PrebootRow, TemplateRow, TemplateVersionRow
from nexus.manager.pipelines import leases
from nexus.manager.pipelines.snapshots import SnapshotPipeline
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services import snapshot_taking, snapshots
from nexus.manager.services.template_use import TemplateUse
from nexus.manager.services.vm_creation import Order, VmCreation, order_of
from nexus.manager.uow import SYSTEM, Caller, UnitOfWork, change

log = structlog.get_logger("pipeline.preboots")

POLL_S = 2.0
"""The price of a lost hint."""
LOOK_S = 0.25
"""How often a VM or a snapshot under way is looked at."""
GATHER_S = 0.1
"""From a hint to the look: the VM that was taken from a pool goes first, the next one follows."""
LATER_S = 5.0
POOL_LOOK_S = 10.0
FETCH = 8
PATIENCE = timedelta(minutes=10)
"""How long the VM has until its guest is ready."""
LIFETIME = timedelta(minutes=30)
"""When it goes by itself, whatever has become of the managers."""
STEADY = timedelta(seconds=1)
"""A guest of nothing but a kernel has no agent that says it is ready: it has to run so long."""
ASK_TIMEOUT_S = 3.0
TAG = "nexus.preboot"


class _LeaseLost(Exception):
    """Another manager has the row now; this one changes nothing."""


class PrebootPipeline:
    """The worker that sees to all prebooted VMs; one for a manager process."""

    def __init__(
        self,
        db: Database,
        agents: Agents,
        creation: VmCreation,
        vms: VmPipeline,
        captures: SnapshotPipeline,
        instance: str,
    ) -> None:
        self.db = db
        self.agents = agents
        self.creation = creation
        self.vms = vms
        self.captures = captures
        self.instance = instance
        self._wake = anyio.Event()

    def hint(self) -> None:
        """There may be work. A hint that is lost costs ``POLL_S``."""
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            self._wake = anyio.Event()
            rows = await self._fetch()
            async with anyio.create_task_group() as tasks:
                for row in rows:
                    tasks.start_soon(self._work, row)
            with anyio.move_on_after(LOOK_S if rows else POLL_S):
                await self._wake.wait()
                await anyio.sleep(GATHER_S)

    async def _fetch(self) -> Sequence[PrebootRow]:
        now = datetime.now(UTC)
        needs_work = PrebootRow.unsettled == true()
        try:
            async with self.db.read() as session:
                if not await leases.any_due(session, PrebootRow, needs_work, now):
                    return []
            async with self.db.write() as session:
                return await leases.claim(
                    session, PrebootRow, needs_work, self.instance, now, FETCH
                )
        except (SQLAlchemyError, OSError):
            log.exception("the database does not answer; trying again")
            return []

    async def _work(self, row: PrebootRow) -> None:
        """One look and one step."""
        try:
            await self._step(row)
        except _LeaseLost:
            log.info("lease lost; nothing was changed", preboot=row.id)
        except NexusError as error:
            await self._fail(row, error.message)
        except (SQLAlchemyError, OSError):
            # The lease runs out and the row is tried again.
            log.exception("work on a prebooted VM failed", preboot=row.id)

    async def _step(self, row: PrebootRow) -> None:
        async with self.db.read() as session:
            is_stale = await _is_stale(session, row)
        if is_stale:
            await self._let_go(row)
            return
        match row.state:
            case "wanted":
                await self._boot(row)
            case "booting":
                await self._look_at_vm(row)
            case "capturing":
                await self._look_at_snapshot(row)
            case "ready":
                await self._keep_pool(row)
            case "failed":
                await self._rest(row, None)

    async def _boot(self, row: PrebootRow) -> None:
        """A VM of the version, on its host, as if somebody had asked for it by its name alone."""

        async def draw(unit: UnitOfWork) -> Order:
            held = await _held(unit.session, row)
            order = await self._order(unit, row, [row.vm_name])
            _become(held, "booting", unit.at)
            because = f"booted for template {row.template_name}"
            return replace(order, expires_at=unit.at + LIFETIME, because=because)

        await self.creation.make(_caller(row), "template.preboot", draw, lambda _: Ok())

    async def _order(self, unit: UnitOfWork, row: PrebootRow, names: Sequence[str]) -> Order:
        """VMs as the version says, on the row's host."""
        version = await unit.session.get_one(TemplateVersionRow, (row.template_id, row.version))
        spec = version.spec.model_copy(update={"ttl": None, "start": True})
        use = TemplateUse(
            row.template_id, row.template_name, row.version, version.images, {}, lambda _: Ok()
        )
        order = await order_of(unit, specs.request_of(spec), names, use)
        changes = {"tags": {TAG: row.template_name}, "restart_policy": "never"}
        about = order.blueprint.model_copy(update=changes)
        # They are none of the template's VMs: nothing rolls over them.
        return replace(order, blueprint=about, use=None, host_id=row.host_id)

    async def _look_at_vm(self, row: PrebootRow) -> None:
        async with self.db.read() as session:
            vm = await _vm(session, row)
        now = datetime.now(UTC)
        if vm is None:
            await self._fail(row, "the VM that was booted for it is gone")
        elif vm.state in ("error", "stopped", "paused") and not vm.unsettled:
            said = vm.error.message if vm.error else f"it is {vm.state}"
            await self._fail(row, f"the VM that was booted for it did not come up: {said}")
        elif await self._is_up(vm, now):
            await self._capture(row)
        elif now >= row.updated_at + PATIENCE:
            await self._fail(row, "the guest did not say that it is ready")
        else:
            await self._later(row, LOOK_S)

    async def _is_up(self, vm: VmRow, now: datetime) -> bool:
        if vm.state != "running" or vm.unsettled:
            return False
        if vm.rootfs is None and vm.initrd is None:
            return vm.started_at is not None and now >= vm.started_at + STEADY
        info: GuestInfo | None = None
        try:
            with anyio.move_on_after(ASK_TIMEOUT_S):
                info = await self.agents.of(vm.host_id).guest(vm.id)
        except NexusError as error:
            log.debug("the guest does not answer yet", vm_id=vm.id, error=error.message)
        return info is not None and info.ready

    async def _capture(self, row: PrebootRow) -> None:
        async with change(self.db, _caller(row), "preboot.capture", target=row.id) as unit:
            held = await _held(unit.session, row)
            vm = await _vm(unit.session, row, lock=True)
            if vm is None:
                return  # the next look says so
            host = await unit.session.get_one(HostRow, row.host_id)
            # A name that is made up: the one of an attempt before may be on its way out.
            snapshot = await snapshot_taking.begin(unit, vm, None, "full")
            snapshot.template_id = row.template_id
            held.snapshot_id, held.vmm_version = snapshot.id, host.engine_version
            _become(held, "capturing", unit.at)
        self.captures.hint()
        self.hint()

    async def _look_at_snapshot(self, row: PrebootRow) -> None:
        async with self.db.read() as session:
            snapshot = await session.get(SnapshotRow, row.snapshot_id)
        if snapshot is None or snapshot.state in ("error", "deleting"):
            said = snapshot.error.message if snapshot and snapshot.error else "it is gone"
            await self._fail(row, f"the snapshot was not taken: {said}")
        elif snapshot.state != "ready":
            await self._later(row, LOOK_S)
        else:
            async with change(self.db, _caller(row), "preboot.ready", target=row.id) as unit:
                held = await _held(unit.session, row)
                told = await _remove_vm(unit, row)
                _become(held, "ready", unit.at)
            self._tell(told)

    async def _keep_pool(self, row: PrebootRow) -> None:
        """Fills the pool up, or takes out what is too much or no good. A full one is looked at now
        and then: a VM in it may have ended."""
        async with self.db.read() as session:
            version = await session.get(TemplateVersionRow, (row.template_id, row.version))
            waiting = (await session.scalars(_pool_of(row))).all()
        size = version.pool if version is not None and version.preboot else 0
        good = [vm for vm in waiting if vm.unsettled or vm.state == "paused"]
        surplus = {vm.id for vm in waiting} - {vm.id for vm in good[:size]}
        if surplus:
            # One that ended is followed by others soon enough: they might end likewise.
            await self._take_out(row, surplus, 0 if len(good) == len(waiting) else POOL_LOOK_S)
        elif len(good) < size:
            await self._fill(row, size - len(good))
        else:
            await self._rest(row, POOL_LOOK_S if size else None)

    async def _take_out(self, row: PrebootRow, vm_ids: Collection[str], rest_s: float) -> None:
        async with change(self.db, _caller(row), "preboot.pool", target=row.id) as unit:
            await _held(unit.session, row)
            query = _pool_of(row).where(VmRow.id.in_(vm_ids)).with_for_update()
            for vm in await unit.session.scalars(query):
                wanting.act(unit, vm, "delete", because=("deleting", "its pool needs it no more"))
        self.vms.hint()
        await self._later(row, rest_s)

    async def _fill(self, row: PrebootRow, count: int) -> None:
        """Clones that stand still, on the row's host: as many as there is room for. Without room
        for one the pool is what it is, and it is tried again."""

        async def draw(unit: UnitOfWork) -> Order:
            await _held(unit.session, row)
            snapshot = await snapshots.find_ready(unit.session, row.project, row.snapshot_id or "")
            order = await self._order(unit, row, [f"pool-{new_id()[-12:]}" for _ in range(count)])
            return replace(
                order,
                power="paused",
                origin=StoredOrigin(id=snapshot.id, name=snapshot.name, boot=1),
                pool_id=row.id,
                because=f"loaded into the pool of template {row.template_name}",
            )

        while count:
            try:
                await self.creation.make(_caller(row), "template.pool", draw, lambda _: Ok())
            except (NoCapacity, QuotaExceeded, AddressPoolExhausted) as error:
                log.info("a pool is not full", template=row.template_name, error=error.message)
                count //= 2
            except NexusError as error:
                log.info("a pool is not filled", template=row.template_name, error=error.message)
                break
            else:
                await self._later(row, 0)
                return
        await self._rest(row, POOL_LOOK_S)

    async def _rest(self, row: PrebootRow, for_s: float | None) -> None:
        """Nothing is to be done, for some time or until somebody says that there is."""
        async with change(self.db, _caller(row), "preboot.step", target=row.id) as unit:
            held = await _held(unit.session, row)
            leases.release(held)
            if _is_as_seen(held, row):
                held.unsettled = for_s is not None
                held.next_attempt_at = unit.at + timedelta(seconds=for_s or 0)

    async def _let_go(self, row: PrebootRow) -> None:
        """Removes the VM and the pool, then the snapshot and the row when nobody needs them any
        more: a clone that has not got its disks yet does."""
        async with self.db.read() as session:
            vms = [await _vm(session, row), *await session.scalars(_pool_of(row))]
            snapshot = await session.get(SnapshotRow, row.snapshot_id) if row.snapshot_id else None
            waits = not any(vms) and snapshot is not None and await _is_needed(session, snapshot)
        if waits:
            await self._later(row, LATER_S)
            return
        async with change(self.db, _caller(row), "preboot.delete", target=row.id) as unit:
            held = await _held(unit.session, row)
            told = await _remove_vm(unit, row)
            for vm in await unit.session.scalars(_pool_of(row).with_for_update()):
                wanting.act(unit, vm, "delete", because=("deleting", "its pool goes"))
                told = vm
            snapshot = await _snapshot(unit, row)
            if snapshot is not None and await _is_needed(unit.session, snapshot):
                leases.release(held)
                held.next_attempt_at = unit.at + timedelta(seconds=LATER_S)
            else:
                if snapshot is not None:
                    snapshots.discard(snapshot, unit.at)
                await unit.session.delete(held)
        self._tell(told)
        self.captures.hint()

    async def _fail(self, row: PrebootRow, message: str) -> None:
        try:
            async with change(self.db, _caller(row), "preboot.fail", target=row.id) as unit:
                held = await _held(unit.session, row)
                told = await _remove_vm(unit, row)
                if (snapshot := await _snapshot(unit, row)) is not None:
                    snapshots.discard(snapshot, unit.at)
                held.snapshot_id = None
                asked_meanwhile = not _is_as_seen(held, row)
                _become(held, "failed", unit.at)
                held.message, held.unsettled = message, asked_meanwhile
        except _LeaseLost:
            return
        log.warning("a template is not prebooted", template=row.template_name, error=message)
        self.vms.counts.acted("preboot_failed")
        self._tell(told)
        self.captures.hint()

    async def _later(self, row: PrebootRow, after_s: float) -> None:
        async with self.db.write() as session:
            held = await leases.held(session, PrebootRow, row.id, row.lease_token or "")
            if held is None:
                return
            leases.release(held)
            if _is_as_seen(held, row):
                held.next_attempt_at = datetime.now(UTC) + timedelta(seconds=after_s)

    def _tell(self, vm: VmRow | None) -> None:
        if vm is not None:
            self.vms.hint()


def _caller(row: PrebootRow) -> Caller:
    return replace(SYSTEM, project=row.project)


def _become(row: PrebootRow, state: str, now: datetime) -> None:
    row.state = state  # type: ignore[assignment]
    row.updated_at, row.next_attempt_at = now, now
    leases.release(row)


def _is_as_seen(held: PrebootRow, row: PrebootRow) -> bool:
    """Whether nobody has asked for another look since this one began; whoever does writes the time
    into the row, and must not find it laid to rest by one that saw things as they were before."""
    return held.next_attempt_at == row.next_attempt_at


async def _held(session: AsyncSession, row: PrebootRow) -> PrebootRow:
    held = await leases.held(session, PrebootRow, row.id, row.lease_token or "")
    if held is None:
        raise _LeaseLost
    return held


async def _is_stale(session: AsyncSession, row: PrebootRow) -> bool:
    """Whether it is of no use: of an old version, without a snapshot, or of another VMM."""
    template = await session.get(TemplateRow, row.template_id)
    if template is None or template.version != row.version:
        return True
    if row.state != "ready":
        return False
    snapshot = await session.get(SnapshotRow, row.snapshot_id)
    host = await session.get(HostRow, row.host_id)
    if snapshot is None or snapshot.state != "ready" or host is None:
        return True
    return host.engine_version != row.vmm_version or host.engine != snapshot.engine


def _pool_of(row: PrebootRow) -> Select[VmRow]:
    """The VMs that wait in a pool, oldest first."""
    query = select(VmRow).where(VmRow.pool_id == row.id, VmRow.power != "deleted")
    return query.order_by(VmRow.id)


async def _vm(session: AsyncSession, row: PrebootRow, *, lock: bool = False) -> VmRow | None:
    query = select(VmRow).where(
        VmRow.project == row.project, VmRow.name == row.vm_name, VmRow.power != "deleted"
    )
    return await session.scalar(query.with_for_update() if lock else query)


async def _is_needed(session: AsyncSession, snapshot: SnapshotRow) -> bool:
    """Whether VMs are on their way from it. Diffs on top of it are none of it: their host makes
    them whole."""
    try:
        await snapshots.check_not_needed(session, snapshot, merge=True)
    except InUse as error:
        log.info("a prebooted VM is needed still", snapshot=snapshot.id, error=error.message)
        return True
    return False


async def _snapshot(unit: UnitOfWork, row: PrebootRow) -> SnapshotRow | None:
    """The row's snapshot, locked."""
    if row.snapshot_id is None:
        return None
    return await unit.session.get(SnapshotRow, row.snapshot_id, with_for_update=True)


async def _remove_vm(unit: UnitOfWork, row: PrebootRow) -> VmRow | None:
    vm = await _vm(unit.session, row, lock=True)
    if vm is not None:
        wanting.act(unit, vm, "delete", because=("deleting", "it was booted for its template"))
    return vm
