"""Going into guests: which VM, whether it runs, and what the audit holds of it.

What is done in a guest leaves two audit rows: one before anything reaches the guest, so that none
is missing after a crash, and ``…_ended`` with how it ended.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import anyio

from nexus.api.errors import HostUnreachable, InvalidState, NexusError
from nexus.api.guest import Program
from nexus.manager.agents import Agent, Agents
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.services.vms import find
from nexus.manager.uow import Caller, change

MAX_AUDITED_CHARACTERS = 4096
"""How much of an argument list the audit keeps."""


@dataclass(slots=True)
class Visit:
    """Something that is being done in a guest. Fill in ``outcome`` before it is over."""

    vm_id: str
    agent: Agent
    outcome: dict[str, object] = field(default_factory=dict)


class GuestService:
    """The way to the guests of a project's VMs."""

    def __init__(self, db: Database, agents: Agents) -> None:
        self.db = db
        self.agents = agents

    async def look(self, ref: str, project: str) -> Visit:
        """For reading only: not audited. Raises NotFound, or InvalidState unless the VM runs."""
        async with self.db.read() as session:
            row = await find(session, project, ref)
        return self._visit(row)

    @contextlib.asynccontextmanager
    async def visit(
        self,
        ref: str,
        caller: Caller,
        action: str,
        details: Mapping[str, object],
        *,
        once: bool = False,
    ) -> AsyncIterator[Visit]:
        """For everything that may change the guest. Raises as ``look`` does.

        The request's Idempotency-Key is taken when the visit is over, so that what was cut off is
        done again; with ``once`` it is taken before, because doing it again would do harm.
        """
        first = caller if once else replace(caller, claim=None)
        async with change(self.db, first, action, target=ref) as unit:
            unit.before, unit.once = dict(details), once
            row = await find(unit.session, caller.project, ref)
            unit.target = row.id
            visit = self._visit(row)
        refusal: NexusError | None = None
        left = True
        try:
            yield visit
            left = False
        except NexusError as error:
            refusal, left = error, False
            raise
        finally:
            if left:
                visit.outcome["ended"] = "the caller left"
            with anyio.CancelScope(shield=True), contextlib.suppress(NexusError):
                async with change(self.db, caller, f"{action}_ended", target=visit.vm_id) as unit:
                    unit.before = dict(details)
                    unit.after = visit.outcome
                    if refusal is not None:
                        raise refusal

    def _visit(self, row: VmRow) -> Visit:
        if row.state == "paused":
            raise InvalidState(f"{row.name} is paused", suggestion=f"nexus resume {row.name}")
        if row.state == "unknown":
            raise HostUnreachable(
                f"the host of {row.name} does not answer",
                suggestion="see whether it runs: nexus host ls",
            )
        if row.state != "running" or row.host_id is None:
            raise InvalidState(
                f"{row.name} is {row.state}: nothing runs in it",
                suggestion=f"nexus start {row.name}",
            )
        return Visit(row.id, self.agents.of(row.host_id))


def told(program: Program) -> dict[str, object]:
    """What the audit holds of a program: never its input, nor the values of its environment."""
    return {
        "argv": _shortened(program.argv),
        "env": sorted(program.env),
        "cwd": program.cwd,
        "user": program.user,
    }


def _shortened(argv: Sequence[str]) -> list[str]:
    kept: list[str] = []
    left = MAX_AUDITED_CHARACTERS
    for argument in argv:
        if len(argument) + 1 > left:
            return [*kept, f"{argument[:left]}…"]
        kept.append(argument)
        left -= len(argument) + 1
    return kept
