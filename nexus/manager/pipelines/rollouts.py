"""Carrying rollouts out: lease → look at the VMs under way → one step, in one transaction.

A step changes rows and nothing else: what is wanted of VMs, which the pipeline of VMs then sees to,
and how far the rollout is. So a manager may be killed at any statement: either the whole step was
made or none of it, and the next manager looks at the same VMs again. See docs/templates.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import anyio
import structlog
from sqlalchemy import select, true
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import NexusError
from nexus.manager import rollout_plan
from nexus.manager.agents import Agents
from nexus.manager.config import Settings
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.db.template_tables import RolloutRow, RolloutVmRow
from nexus.manager.pipelines import leases
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services import rollout_steps
from nexus.manager.uow import SYSTEM, change
from nexus.manager.waiters import Waiters

log = structlog.get_logger("pipeline.rollouts")

POLL_S = 2.0
"""The price of a lost hint."""
LOOK_S = 0.5
"""How often VMs under way are looked at when nothing is heard of them."""
FETCH = 16
ASK_TIMEOUT_S = 3.0
"""How long a guest's agent has to say that it is there."""
AGAIN_S = 1.0


class _LeaseLost(Exception):
    """Another manager has the rollout now; this one changes nothing."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What was found of a rollout: its VMs under way, and what is known of each."""

    row: RolloutRow
    members: Sequence[RolloutVmRow]
    seen: Mapping[str, rollout_plan.Seen | None]
    """By VM; None for one that is gone."""


class RolloutPipeline:
    """The worker that sees to all rollouts; one for a manager process."""

    def __init__(
        self,
        db: Database,
        agents: Agents,
        vms: VmPipeline,
        waiters: Waiters,
        settings: Settings,
        instance: str,
    ) -> None:
        self.db = db
        self.agents = agents
        self.vms = vms
        self.waiters = waiters
        self.settings = settings
        self.instance = instance
        self._held: set[str] = set()
        self._wake = anyio.Event()

    def hint(self) -> None:
        """There may be work. A hint that is lost costs ``POLL_S``."""
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled; then gives its leases back."""
        try:
            async with anyio.create_task_group() as tasks:
                while True:
                    self._wake = anyio.Event()
                    for row in await self._fetch():
                        tasks.start_soon(self._work, row.id, row.lease_token or "")
                    with anyio.move_on_after(POLL_S):
                        await self._wake.wait()
        finally:
            with anyio.move_on_after(2, shield=True):
                if self._held:
                    async with self.db.write() as session:
                        now = datetime.now(UTC)
                        await leases.give_back(session, RolloutRow, self._held, now)

    async def _fetch(self) -> Sequence[RolloutRow]:
        now = datetime.now(UTC)
        needs_work = RolloutRow.unsettled == true()
        try:
            async with self.db.read() as session:
                if not await leases.any_due(session, RolloutRow, needs_work, now):
                    return []
            async with self.db.write() as session:
                return await leases.claim(
                    session, RolloutRow, needs_work, self.instance, now, FETCH
                )
        except (SQLAlchemyError, OSError):
            log.exception("the database does not answer; trying again")
            return []

    async def _work(self, rollout_id: str, token: str) -> None:
        """Steps until nothing is left to do or it rests, or the lease is lost."""
        structlog.contextvars.bind_contextvars(rollout_id=rollout_id)
        self._held.add(token)
        try:
            while await self._round(rollout_id, token):
                pass
        except _LeaseLost:
            log.info("lease lost; nothing was changed")
        except (SQLAlchemyError, OSError):
            # The lease runs out and the rollout is tried again.
            log.exception("work on a rollout failed")
        self._held.discard(token)
        self.waiters.notify(rollout_id)

    async def _round(self, rollout_id: str, token: str) -> bool:
        """One look and one step; whether to go on at once."""
        look = await self._look(rollout_id)
        if look is None:
            raise _LeaseLost
        step = await self._step(look, token)
        self.waiters.notify(rollout_id)
        if not isinstance(step, rollout_plan.Wait):
            return not isinstance(step, rollout_plan.Rest | rollout_plan.Settled)
        busy = [each.vm_id for each in look.members if each.state in rollout_plan.BUSY]
        with self.waiters.listen(rollout_id, *busy) as woken, anyio.move_on_after(LOOK_S):
            await woken.wait()
        return True

    async def _look(self, rollout_id: str) -> _Look | None:
        async with self.db.read() as session:
            row = await session.get(RolloutRow, rollout_id)
            if row is None:
                return None
            members = await members_of(session, rollout_id)
            busy = {each.vm_id: each for each in members if each.state in rollout_plan.BUSY}
            found = await session.scalars(select(VmRow).where(VmRow.id.in_(busy)))
            rows = {vm.id: vm for vm in found}
        seen: dict[str, rollout_plan.Seen | None] = {}
        answers = await self._ask(row, [*rows.values()])
        for vm_id, member in busy.items():
            vm = rows.get(vm_id)
            if vm is None or vm.power == "deleted":
                seen[vm_id] = None
                continue
            seen[vm_id] = rollout_plan.Seen(
                state=vm.state,
                settled=vm.settled_generation >= (member.generation or 0) and not vm.unsettled,
                ran_since=vm.started_at,
                restarts=vm.restarts,
                error=vm.error.message if vm.error else None,
                agent_answers=answers.get(vm_id),
            )
        return _Look(row, members, seen)

    async def _ask(self, row: RolloutRow, vms: Sequence[VmRow]) -> dict[str, bool]:
        """Which guests' agents answer, if that is what counts."""
        if row.options.health != "agent":
            return {}
        answers: dict[str, bool] = {}

        async def ask(vm: VmRow) -> None:
            answers[vm.id] = False
            try:
                with anyio.move_on_after(ASK_TIMEOUT_S):
                    await self.agents.of(vm.host_id).guest(vm.id)
                    answers[vm.id] = True
            except NexusError as error:
                log.debug("the guest does not answer", vm_id=vm.id, error=error.message)

        async with anyio.create_task_group() as tasks:
            for vm in vms:
                if vm.state == "running" and not vm.unsettled:
                    tasks.start_soon(ask, vm)
        return answers

    async def _step(self, look: _Look, token: str) -> rollout_plan.Step:
        """Writes what was seen and what follows. Raises _LeaseLost."""
        now = datetime.now(UTC)
        if not self._is_news(look, now):
            return rollout_plan.Wait()
        caller = replace(SYSTEM, project=look.row.project, request_id=look.row.request_id)
        told: list[VmRow] = []
        async with change(self.db, caller, "rollout.step", target=look.row.id) as unit:
            row = await leases.held(unit.session, RolloutRow, look.row.id, token)
            if row is None:
                raise _LeaseLost
            row.lease_expires_at = now + timedelta(seconds=leases.LEASE_S)
            members = await members_of(unit.session, row.id, lock=True)
            was_busy = any(each.state in rollout_plan.BUSY for each in members)
            for member in members:
                if member.state in rollout_plan.BUSY and member.vm_id in look.seen:
                    rollout_steps.observe(member, look.seen[member.vm_id], row.options, now)
            is_busy = any(each.state in rollout_plan.BUSY for each in members)
            if was_busy and not is_busy and row.state == "running" and row.options.pause_s:
                row.rest_until = now + timedelta(seconds=row.options.pause_s)
            states = [each.state for each in members]
            step = rollout_plan.next_step(row.state, states, row.options, row.rest_until, now)
            row.updated_at = now
            match step:
                case rollout_plan.Begin(positions):
                    row.rest_until = None
                    for index in positions:
                        vm = await rollout_steps.begin(
                            unit, row, members[index], self.settings.mem_overcommit
                        )
                        if vm is not None:
                            self.vms.take(vm, now)
                            told.append(vm)
                case rollout_plan.End(state, reason):
                    row.state, row.reason = state, reason
                case rollout_plan.Rest(until):
                    row.next_attempt_at = until
                    leases.release(row)
                case rollout_plan.Settled():
                    row.unsettled = False
                    leases.release(row)
                case rollout_plan.Wait():
                    pass
            unit.after = {"state": row.state, "vms": dict(rollout_plan.counted(states))}
        for vm in told:
            self.vms.begin(vm)
        return step

    @staticmethod
    def _is_news(look: _Look, now: datetime) -> bool:
        """Whether there is anything to write: a VM came to an end, none is under way, or the lease
        has to be prolonged."""
        busy = [each for each in look.members if each.state in rollout_plan.BUSY]
        held_s = leases.LEASE_S - leases.RENEW_S
        expires = look.row.lease_expires_at
        if not busy or expires is None or expires <= now + timedelta(seconds=held_s):
            return True
        return any(
            rollout_steps.has_ended(each, look.seen[each.vm_id], look.row.options, now)
            for each in busy
        )


async def members_of(
    session: AsyncSession, rollout_id: str, *, lock: bool = False
) -> Sequence[RolloutVmRow]:
    """The VMs of a rollout in the order of their turn."""
    query = select(RolloutVmRow).where(RolloutVmRow.rollout_id == rollout_id)
    query = query.order_by(RolloutVmRow.vm_id)
    return (await session.scalars(query.with_for_update() if lock else query)).all()
