"""Rollouts: asking for them, and having a say in one that goes on.

What is done to the VMs, step by step, is in ``pipelines/rollouts.py``.
"""

from collections.abc import Callable, Sequence

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, Page
from nexus.api.errors import Conflict, InvalidState, NotFound, ValidationFailed
from nexus.api.rollouts import (
    MemberState,
    Rollout,
    RolloutAction,
    RolloutCounts,
    RolloutCreate,
    RolloutOptions,
    RolloutState,
    RolloutVm,
)
from nexus.ids import new_id
from nexus.manager import rollout_plan
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.db.template_tables import RolloutRow, RolloutVmRow, TemplateRow
from nexus.manager.services import templates
from nexus.manager.services.vm_tags import tagged
from nexus.manager.uow import Caller, change

_SAID: dict[RolloutAction, str] = {
    "halt": "halted",
    "resume": "resumed",
    "cancel": "cancelled",
    "rollback": "rolled back",
}


class Rollouts:
    """The rules of rollouts."""

    def __init__(self, db: Database, hint: Callable[[], None]) -> None:
        self.db = db
        self.hint = hint

    async def create(self, caller: Caller, ref: str, request: RolloutCreate) -> Rollout:
        """Begins a rollout over the template's VMs as they are now.

        Raises NotFound, Conflict while another one of the template is not at its end, or
        ValidationFailed when there is no VM to change.
        """
        try:
            async with change(self.db, caller, "rollout.create") as unit:
                template = await templates.find(unit.session, caller.project, ref, lock=True)
                # The unique index decides; but an insert that waits for it would stand in the way
                # of the worker for which it waits.
                await _check_none_active(unit.session, template)
                version = await templates.find_version(
                    unit.session, template, request.version or template.version
                )
                members = await _members(unit.session, template, request)
                given = {name: getattr(request, name) for name in RolloutOptions.model_fields}
                row = RolloutRow(
                    id=new_id(),
                    project=caller.project,
                    template_id=template.id,
                    template_name=template.name,
                    version=version.version,
                    options=RolloutOptions(**given),
                    state="running",
                    unsettled=True,
                    created_at=unit.at,
                    updated_at=unit.at,
                    created_by=caller.actor,
                    request_id=caller.request_id,
                    next_attempt_at=unit.at,
                    attempts=0,
                )
                unit.session.add(row)
                await unit.session.flush()
                unit.session.add_all(
                    RolloutVmRow(rollout_id=row.id, vm_id=vm_id, vm_name=name, state="pending")
                    for vm_id, name in members
                )
                counts = RolloutCounts(pending=len(members))
                unit.target = row.id
                unit.after = {
                    "template": f"{template.name}@{version.version}",
                    "vms": len(members),
                    "options": row.options.model_dump(mode="json"),
                }
                unit.answer = lambda: Created[Rollout](id=row.id, item=to_rollout(row, counts))
        except IntegrityError as error:
            raise Conflict(
                f"another rollout of template {ref!r} is not at its end",
                suggestion="nexus rollout ls; then: nexus rollout resume, cancel or rollback ID",
            ) from error
        self.hint()
        return to_rollout(row, counts)

    async def act(self, caller: Caller, rollout_id: str, action: RolloutAction) -> None:
        """Halts, resumes, cancels or takes back a rollout. VMs that are on their way go on.

        Raises NotFound, InvalidState, Conflict.
        """
        try:
            async with change(self.db, caller, f"rollout.{action}", target=rollout_id) as unit:
                row = await _find(unit.session, caller.project, rollout_id, lock=True)
                state = rollout_plan.allowed(action, row.state)
                if state is None:
                    raise InvalidState(
                        f"the rollout is {row.state} and cannot be {_SAID[action]}",
                        suggestion=f"nexus rollout show {row.id}",
                    )
                unit.before, unit.after = {"state": row.state}, {"state": state}
                if state == row.state:
                    return
                query = select(RolloutVmRow).where(RolloutVmRow.rollout_id == row.id)
                for member in await unit.session.scalars(query):
                    wanted = rollout_plan.after(action, member.state)
                    if wanted != member.state:
                        member.state, member.message = wanted, None
                        if wanted == "skipped":
                            member.message, member.ended_at = "the rollout ended before", unit.at
                if row.state not in rollout_plan.ACTIVE:
                    template = await unit.session.get_one(TemplateRow, row.template_id)
                    await _check_none_active(unit.session, template)
                row.state, row.updated_at = state, unit.at
                row.reason = f"{_SAID[action]} by {caller.actor}"
                row.unsettled, row.next_attempt_at, row.rest_until = True, unit.at, None
                await unit.session.flush()
        except IntegrityError as error:
            raise Conflict(
                "another rollout of the template is not at its end",
                suggestion="nexus rollout ls",
            ) from error
        self.hint()

    async def get(self, project: str, rollout_id: str) -> Rollout:
        """One rollout. Raises NotFound."""
        async with self.db.read() as session:
            row = await _find(session, project, rollout_id)
            counts = await _counts(session, [row.id])
        return to_rollout(row, counts.get(row.id, RolloutCounts()))

    async def page(
        self,
        project: str,
        *,
        template: str | None,
        state: RolloutState | None,
        cursor: str | None,
        limit: int,
    ) -> Page[Rollout]:
        """Rollouts in the order they were asked for."""
        query = select(RolloutRow).where(RolloutRow.project == project)
        if template is not None:
            named = (RolloutRow.template_id == template) | (RolloutRow.template_name == template)
            query = query.where(named)
        if state is not None:
            query = query.where(RolloutRow.state == state)
        if cursor is not None:
            query = query.where(RolloutRow.id > cursor)
        async with self.db.read() as session:
            rows = (await session.scalars(query.order_by(RolloutRow.id).limit(limit + 1))).all()
            counts = await _counts(session, [row.id for row in rows[:limit]])
        return Page(
            items=[to_rollout(row, counts.get(row.id, RolloutCounts())) for row in rows[:limit]],
            next_cursor=rows[limit - 1].id if len(rows) > limit else None,
        )

    async def members(
        self, project: str, rollout_id: str, *, cursor: str | None, limit: int
    ) -> Page[RolloutVm]:
        """The VMs of a rollout, in the order of their turn. Raises NotFound."""
        async with self.db.read() as session:
            row = await _find(session, project, rollout_id)
            query = select(RolloutVmRow).where(RolloutVmRow.rollout_id == row.id)
            if cursor is not None:
                query = query.where(RolloutVmRow.vm_id > cursor)
            query = query.order_by(RolloutVmRow.vm_id).limit(limit + 1)
            found = (await session.scalars(query)).all()
        return Page(
            items=[_to_member(member) for member in found[:limit]],
            next_cursor=found[limit - 1].vm_id if len(found) > limit else None,
        )


async def _check_none_active(session: AsyncSession, template: TemplateRow) -> None:
    """Raises Conflict while a rollout of a template, which is locked, is not at its end."""
    query = select(RolloutRow.id).where(
        RolloutRow.template_id == template.id, RolloutRow.state.in_(rollout_plan.ACTIVE)
    )
    active = await session.scalar(query.limit(1))
    if active is not None:
        raise Conflict(
            f"another rollout of template {template.name!r} is not at its end",
            suggestion=f"nexus rollout show {active}; then: nexus rollout resume, cancel or "
            f"rollback {active}",
        )


async def _members(
    session: AsyncSession, template: TemplateRow, request: RolloutCreate
) -> Sequence[tuple[str, str]]:
    terms = [f"{key}={value}" for key, value in request.selector.items()]
    query = select(VmRow.id, VmRow.name).where(
        VmRow.project == template.project,
        VmRow.template_id == template.id,
        VmRow.power != "deleted",
        *tagged(template.project, terms),
    )
    found = (await session.execute(query.order_by(VmRow.id))).all()
    if not found:
        raise ValidationFailed(
            f"no VM of template {template.name!r} matches",
            suggestion=f"nexus ls --template {template.name}",
        )
    return [(vm_id, name) for vm_id, name in found]


async def _find(
    session: AsyncSession, project: str, rollout_id: str, *, lock: bool = False
) -> RolloutRow:
    query = select(RolloutRow).where(RolloutRow.project == project, RolloutRow.id == rollout_id)
    row = (await session.scalars(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no rollout {rollout_id}", suggestion="nexus rollout ls")
    return row


async def _counts(session: AsyncSession, ids: Sequence[str]) -> dict[str, RolloutCounts]:
    query = (
        select(RolloutVmRow.rollout_id, RolloutVmRow.state, func.count())
        .where(RolloutVmRow.rollout_id.in_(ids))
        .group_by(RolloutVmRow.rollout_id, RolloutVmRow.state)
    )
    counts: dict[str, dict[MemberState, int]] = {rollout_id: {} for rollout_id in ids}
    for rollout_id, state, count in await session.execute(query):
        counts[rollout_id][state] = count
    return {rollout_id: RolloutCounts(**found) for rollout_id, found in counts.items()}


def to_rollout(row: RolloutRow, counts: RolloutCounts) -> Rollout:
    """A row as the API shows it."""
    return Rollout(
        id=row.id,
        project=row.project,
        template_id=row.template_id,
        template=row.template_name,
        version=row.version,
        state=row.state,
        reason=row.reason,
        options=row.options,
        vms=counts,
        next_at=row.rest_until if row.state == "running" else None,
        created_at=row.created_at,
        updated_at=row.updated_at,
        created_by=row.created_by,
    )


def _to_member(row: RolloutVmRow) -> RolloutVm:
    return RolloutVm(
        vm_id=row.vm_id,
        vm_name=row.vm_name,
        state=row.state,
        message=row.message,
        former_version=row.former.version if row.former else None,
        begun_at=row.begun_at,
        ended_at=row.ended_at,
    )
