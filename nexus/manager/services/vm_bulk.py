"""One action on many VMs: one transaction for all of them, an answer for each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.bulk import MOST, BulkAnswer, BulkDone, BulkError, BulkRefused, VmActions
from nexus.api.errors import NexusError, NotFound, ValidationFailed
from nexus.api.vms import Vm, WaitState
from nexus.manager import wanting
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services.vm_tags import tagged
from nexus.manager.services.vms import to_vm
from nexus.manager.services.waits import explain, has_reached, timed_out, wait_for_all
from nexus.manager.uow import Caller, UnitOfWork, change
from nexus.manager.waiters import Waiters

STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the wish for one of the things that were named."""

    ref: str
    vm: Vm | None = None
    error: NexusError | None = None

    @property
    def shown(self) -> BulkDone | BulkRefused:
        if self.error is None and self.vm is not None:
            return BulkDone(id=self.vm.id, name=self.vm.name)
        error = self.error or NotFound(f"there is no VM {self.ref!r}", suggestion="nexus ls")
        return BulkRefused(
            id=self.vm.id if self.vm else self.ref,
            name=self.vm.name if self.vm else None,
            error=BulkError(
                code=error.code,
                message=error.message,
                suggestion=error.suggestion,
                fault_message=error.fault_message,
            ),
        )


class VmBulk:
    """Actions on many VMs."""

    def __init__(self, db: Database, pipeline: VmPipeline, waiters: Waiters) -> None:
        self.db = db
        self.pipeline = pipeline
        self.waiters = waiters

    async def act(self, request: VmActions, caller: Caller) -> list[Verdict]:
        """Changes what is wanted of each VM; what one of them does not allow keeps no other.

        Raises ValidationFailed for a request that names VMs in both ways, in none, or too many.
        """
        if (request.ids is None) == (request.selector is None):
            raise ValidationFailed(
                "name VMs by ids or by a selector", suggestion='{"ids": [...]}, or {"selector": …}'
            )
        begun: list[VmRow] = []
        async with change(self.db, caller, f"vm.{request.action}") as unit:
            rows = await _found(unit.session, caller.project, request)
            verdicts = [
                Verdict(ref) if row is None else self._act(unit, request, ref, row, begun)
                for ref, row in rows.items()
            ]
            unit.answer = lambda: answer(verdicts)
            unit.after = {
                "ids": [v.vm.id for v in verdicts if v.vm is not None and v.error is None],
                "refused": [v.ref for v in verdicts if v.vm is None or v.error is not None],
            }
        for row in begun:
            self.pipeline.begin(row)
        return verdicts

    def _act(
        self, unit: UnitOfWork, request: VmActions, ref: str, row: VmRow, begun: list[VmRow]
    ) -> Verdict:
        try:
            if wanting.act(unit, row, request.action, stop_timeout_s=_grace_s(request)):
                self.pipeline.take(row, unit.at)
                begun.append(row)
        except NexusError as error:
            return Verdict(ref, to_vm(row), error)
        return Verdict(ref, to_vm(row))

    async def wait(
        self, verdicts: list[Verdict], state: WaitState, timeout_s: float
    ) -> list[Verdict]:
        """The verdicts once each VM is in ``state``, will not get there, or the time is up."""
        going = [v.vm for v in verdicts if v.vm is not None and v.error is None]
        seen = await wait_for_all(self.db, self.waiters, going, state, timeout_s)
        return [_judged(verdict, seen, state, timeout_s) for verdict in verdicts]


def answer(verdicts: Iterable[Verdict]) -> BulkAnswer:
    """What a bulk request answers."""
    return BulkAnswer(items=[verdict.shown for verdict in verdicts])


def _grace_s(request: VmActions) -> float | None:
    if request.action not in ("stop", "reboot"):
        return None
    if request.force:
        return 0.0
    return STOP_TIMEOUT_S if request.stop_timeout_s is None else request.stop_timeout_s


def _judged(
    verdict: Verdict, seen: Mapping[str, Vm | None], state: WaitState, timeout_s: float
) -> Verdict:
    if verdict.vm is None or verdict.error is not None:
        return verdict
    if verdict.vm.id not in seen:
        return Verdict(verdict.ref, verdict.vm, timed_out(verdict.vm, state, timeout_s))
    now = seen[verdict.vm.id]
    if has_reached(now, state):
        return verdict
    return Verdict(verdict.ref, verdict.vm, explain(now, state))


async def _found(
    session: AsyncSession, project: str, request: VmActions
) -> dict[str, VmRow | None]:
    """The locked rows by what names them, each VM once; None for what names nothing."""
    if request.selector is not None:
        terms = tagged(project, [f"{key}={value}" for key, value in request.selector.items()])
        mine = (VmRow.project == project, VmRow.power != "deleted", *terms)
        count = await session.scalar(select(func.count()).select_from(VmRow).where(*mine))
        if (count or 0) > MOST:
            raise ValidationFailed(
                f"the selector matches more than {MOST} VMs", suggestion="name more tags"
            )
        rows = await _locked(session, *mine)
        return {row.id: row for row in rows}
    refs = list(dict.fromkeys(request.ids or []))
    named = or_(VmRow.id.in_(refs), VmRow.name.in_(refs))
    rows = await _locked(session, VmRow.project == project, named)
    by_ref: dict[str, VmRow] = {}
    # An id wins over a name, and of two with one name the one that is not being deleted.
    for row in sorted(rows, key=lambda vm: (vm.power != "deleted", vm.id)):
        by_ref[row.name] = row
    by_ref |= {row.id: row for row in rows}
    seen: set[str] = set()
    found: dict[str, VmRow | None] = {}
    for ref in refs:
        found_row = by_ref.get(ref)
        if found_row is None or found_row.id not in seen:
            found[ref] = found_row
        if found_row is not None:
            seen.add(found_row.id)
    return found


async def _locked(session: AsyncSession, *conditions: ColumnElement[bool]) -> list[VmRow]:
    """In the order of ids, so that two requests at once never wait for each other."""
    query = select(VmRow).where(*conditions).order_by(VmRow.id).with_for_update()
    return list(await session.scalars(query))
