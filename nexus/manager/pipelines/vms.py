"""Bringing VMs to what is wanted of them: lease → PUT or DELETE at the agent → apply.

See docs/pipelines.md.
"""

import contextlib
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import anyio
import anyio.abc
import structlog
from sqlalchemy import true
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import HostUnreachable, NexusError
from nexus.api.machines import MachineStatus
from nexus.api.vms import VmError
from nexus.manager import observe
from nexus.manager.agents import Agents
from nexus.manager.counts import Counts
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.pipelines import leases
from nexus.manager.uow import Caller, vm_event
from nexus.manager.waiters import Waiters

log = structlog.get_logger("pipeline.vms")

POLL_S = 1.0
"""The price of a lost hint."""
PARALLEL = 32
"""Calls at once; four times as many for stops, which mostly wait for guests."""
FETCH = 64
BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 15.0
GIVE_UP_AFTER = 5
"""So many internal errors of an agent in a row make a VM's error; being unreachable never does."""

Outcome = MachineStatus | None | NexusError
"""What the agent answered: a status, None for "it is gone", or why not."""


def backoff_s(attempts: int, jitter: float) -> float:
    """How long to rest after the ``attempts``-th failure in a row; ``jitter`` is from 0 to 1."""
    longest = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(attempts - 1, 16))
    return longest * (0.5 + jitter / 2)


@dataclass(slots=True)
class _Job:
    """A VM this process holds the lease of."""

    token: str
    row: VmRow
    call: anyio.CancelScope | None = None
    """The call at the agent, while there is one."""
    heard: MachineStatus | None = None
    """The newest status the agent pushed while the call ran."""
    then: VmRow | None = None
    """The row under a new lease, taken when this job had given back its own but not ended yet."""


class VmPipeline:
    """The worker that sees to all VMs; one for a manager process."""

    def __init__(
        self, db: Database, agents: Agents, waiters: Waiters, instance: str, counts: Counts
    ) -> None:
        self.db = db
        self.agents = agents
        self.waiters = waiters
        self.instance = instance
        self.counts = counts
        self._jobs: dict[str, _Job] = {}
        self._at_api: dict[str, Caller] = {}
        self._wake = anyio.Event()
        self._slots = anyio.CapacityLimiter(PARALLEL)
        self._stops = anyio.CapacityLimiter(PARALLEL * 4)
        self._tasks: anyio.abc.TaskGroup | None = None

    @property
    def is_running(self) -> bool:
        return self._tasks is not None

    async def run(self) -> None:
        """Works until cancelled; then gives its leases back."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._renew)
                while True:
                    self._wake = anyio.Event()
                    if await self._fetch() < FETCH:
                        with anyio.move_on_after(POLL_S):
                            await self._wake.wait()
        finally:
            self._tasks = None
            with anyio.move_on_after(2, shield=True):
                await self._give_back()

    def hint(self) -> None:
        """There may be work. A hint that is lost costs ``POLL_S``."""
        self._wake.set()

    def take(self, row: VmRow, now: datetime) -> None:
        """Takes the lease of a row that a request is writing, if it is free, to save a look-up.

        The caller commits and then calls ``begin``.
        """
        if self._tasks is not None and leases.is_free(row, now):
            leases.take(row, self.instance, now)

    def begin(self, row: VmRow) -> None:
        """Starts work on a row as a request has committed it.

        When this process is at work on the VM already, its call is broken off: it was about what
        was wanted before.
        """
        job = self._jobs.get(row.id)
        if row.lease_owner == self.instance and (job is None or job.token != row.lease_token):
            self._start(row)
        elif job is not None and job.call is not None:
            job.call.cancel()
        else:
            self.hint()

    @contextlib.contextmanager
    def at_api(self, vm_id: str, caller: Caller) -> Iterator[None]:
        """While somebody changes a VM through its own API: what is observed then is theirs."""
        self._at_api[vm_id] = caller
        try:
            yield
        finally:
            if self._at_api.get(vm_id) is caller:
                del self._at_api[vm_id]

    def heard(self, status: MachineStatus) -> bool:
        """Offers a pushed status. True when the VM is in work here and the worker will use it."""
        job = self._jobs.get(status.id)
        if job is None:
            return False
        if job.heard is None or status.observed_at >= job.heard.observed_at:
            job.heard = status
        return True

    async def _fetch(self) -> int:
        now = datetime.now(UTC)
        needs_work = VmRow.unsettled == true()
        try:
            async with self.db.read() as session:
                if not await leases.any_due(session, VmRow, needs_work, now):
                    return 0
            async with self.db.write() as session:
                rows = await leases.claim(session, VmRow, needs_work, self.instance, now, FETCH)
        except (SQLAlchemyError, OSError):
            log.exception("the database does not answer; trying again")
            return 0
        for row in rows:
            self._start(row)
        return len(rows)

    def _start(self, row: VmRow) -> None:
        if self._tasks is None or row.lease_token is None:
            return
        ending = self._jobs.get(row.id)
        if ending is not None:
            ending.then = row
            return
        job = _Job(row.lease_token, row)
        self._jobs[row.id] = job
        self._tasks.start_soon(self._work, job)

    async def _work(self, job: _Job) -> None:
        """Calls and applies, until the VM is settled, has to rest, or the lease is lost."""
        vm_id = job.row.id
        structlog.contextvars.bind_contextvars(vm_id=vm_id, request_id=job.row.wanted_in)
        try:
            while await self._round(job):
                pass
        except (SQLAlchemyError, OSError):
            # The lease runs out and the VM is tried again.
            log.exception("work on a VM failed")
        # Not when cancelled: then ``run`` gives the lease back.
        del self._jobs[vm_id]
        if job.then is not None:
            self._start(job.then)
        self.waiters.notify(vm_id)
        if job.heard is not None:
            await self.apply_pushed(job.heard)

    async def _round(self, job: _Job) -> bool:
        """One call and its apply; whether to go on at once."""
        outcome: Outcome = None
        begun = time.perf_counter()
        with anyio.CancelScope() as call:
            job.call = call
            async with self._stops if job.row.power == "stopped" else self._slots:
                begun = time.perf_counter()
                outcome = await self._call(job.row)
        job.call = None
        broken_off = call.cancelled_caught
        took_s = time.perf_counter() - begun
        self.counts.vm_call(job.row.power, took_s, outcome, broken_off=broken_off)
        now = datetime.now(UTC)
        async with self.db.write() as session:
            row = await leases.held(session, VmRow, job.row.id, job.token)
            if row is None:
                log.info("lease lost; nothing was changed")
                return False
            changed_meanwhile = row.generation != job.row.generation
            if not broken_off and not (changed_meanwhile and isinstance(outcome, NexusError)):
                await self._apply(session, job, row, outcome, now)
            gone = not broken_off and outcome is None and row.power == "deleted"
            again = not gone and row.unsettled and row.next_attempt_at <= now
            if not again and not gone:
                leases.release(row)
        self.waiters.notify(row.id)
        job.row = row
        return again

    async def _call(self, row: VmRow) -> Outcome:
        try:
            agent = self.agents.of(row.host_id)
            if row.power == "deleted":
                await agent.delete_vm(row.id)
                return None
            return await agent.put_vm(observe.machine_of(row))
        except NexusError as error:
            return error

    async def _apply(
        self, session: AsyncSession, job: _Job, row: VmRow, outcome: Outcome, now: datetime
    ) -> None:
        if isinstance(outcome, NexusError):
            self._apply_failure(session, row, outcome, now)
            return
        if outcome is None:
            if row.power == "deleted":
                caller = observe.caller_of(row)
                session.add(vm_event(caller, row, now, "deleting", "deleted", "it is gone"))
                await session.delete(row)
            return
        newest = outcome
        heard, job.heard = job.heard, None
        if (
            heard is not None
            and heard.generation == outcome.generation
            and heard.observed_at > outcome.observed_at
        ):
            newest = heard
        observe.apply(session, row, newest, now, self._at_api.get(row.id))

    def _apply_failure(
        self, session: AsyncSession, row: VmRow, error: NexusError, now: datetime
    ) -> None:
        row.attempts += 1
        final = not isinstance(error, HostUnreachable) and row.power != "deleted"
        if final and (error.status < 500 or row.attempts >= GIVE_UP_AFTER):
            observe.fail(
                session,
                row,
                VmError(
                    stage="disk" if error.code == "no_capacity" else "place",
                    message=error.message,
                    fault_message=error.fault_message,
                    suggestion=error.suggestion,
                ),
                now,
            )
            return
        rest_s = backoff_s(row.attempts, random.random())  # noqa: S311
        row.next_attempt_at = now + timedelta(seconds=rest_s)
        log.warning("call failed", error=error.message, attempts=row.attempts, rest_s=rest_s)

    async def apply_pushed(self, status: MachineStatus) -> bool:
        """Applies a status the agent pushed on its own. False when there is no such VM."""
        if self.heard(status):
            return True
        now = datetime.now(UTC)
        async with self.db.read() as session:
            row = await session.get(VmRow, status.id)
        if row is None:
            return False
        if not observe.is_news(row, status) and not observe.is_behind(row, status):
            return True
        async with self.db.write() as session:
            row = await session.get(VmRow, status.id, with_for_update=True)
            if row is None:
                return False
            if observe.is_behind(row, status):
                observe.unsettle(row, now)
            else:
                observe.apply(session, row, status, now, self._at_api.get(row.id))
            unsettled = row.unsettled
        self.waiters.notify(status.id)
        if unsettled:
            self.hint()
        return True

    async def _renew(self) -> None:
        while True:
            await anyio.sleep(leases.RENEW_S)
            try:
                await self._each_held(leases.renew)
            except (SQLAlchemyError, OSError):
                log.exception("leases were not renewed; trying again")

    async def _give_back(self) -> None:
        await self._each_held(leases.give_back)

    async def _each_held(self, act: leases.OnTokens) -> None:
        tokens: Iterable[str] = [job.token for job in self._jobs.values()]
        if tokens:
            async with self.db.write() as session:
                await act(session, VmRow, tokens, datetime.now(UTC))
