"""``client.rollouts``, sync and async."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import anyio

from nexus.api.rollouts import Rollout, RolloutCreate, RolloutState, RolloutVm
from nexus.client.calls import rollouts as calls
from nexus.client.errors import WaitTimedOut

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client

LOOK_S = 0.3
WAIT_S = 3600.0
Progress = Callable[[Rollout], None]


def is_over(rollout: Rollout) -> bool:
    """Whether nothing more happens until somebody asks for something."""
    busy = rollout.vms.updating or rollout.vms.reverting
    return rollout.state not in ("running", "rolling_back") and not busy


def _check_time(rollout: Rollout, deadline: float, timeout_s: float) -> None:
    if time.monotonic() >= deadline:
        raise WaitTimedOut(
            504,
            "timed_out",
            f"the rollout is {rollout.state} after {timeout_s:g} s; it goes on",
            suggestion=f"nexus rollout show {rollout.id}",
        )


class Rollouts:
    """``client.rollouts``. A rollout is named by its id."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(self, template: str, request: RolloutCreate | None = None) -> Rollout:
        """Begins to move a template's VMs to one of its versions."""
        asked = request or RolloutCreate()
        return self._client.send(calls.create_rollout(template, asked))

    def list(
        self,
        *,
        template: str | None = None,
        state: RolloutState | None = None,
        limit: int | None = None,
    ) -> Iterator[Rollout]:
        return self._client.pages(
            lambda cursor: calls.list_rollouts(template, state, limit, cursor)
        )

    def get(self, rollout_id: str) -> Rollout:
        return self._client.send(calls.get_rollout(rollout_id))

    def vms(self, rollout_id: str, *, limit: int | None = None) -> Iterator[RolloutVm]:
        """In the order of their turn."""
        return self._client.pages(lambda cursor: calls.list_members(rollout_id, limit, cursor))

    def halt(self, rollout_id: str) -> None:
        """Begins no further batch until it is resumed."""
        self._client.send(calls.act_on_rollout(rollout_id, "halt"))

    def resume(self, rollout_id: str) -> None:
        """Goes on; VMs that failed are tried again."""
        self._client.send(calls.act_on_rollout(rollout_id, "resume"))

    def cancel(self, rollout_id: str) -> None:
        """Ends it where it is."""
        self._client.send(calls.act_on_rollout(rollout_id, "cancel"))

    def rollback(self, rollout_id: str) -> None:
        """Brings every VM that it changed back to what it was."""
        self._client.send(calls.act_on_rollout(rollout_id, "rollback"))

    def wait(
        self, rollout_id: str, *, timeout_s: float = WAIT_S, progress: Progress | None = None
    ) -> Rollout:
        """The rollout once it is at an end or halted. Raises WaitTimedOut, which undoes nothing."""
        deadline = time.monotonic() + timeout_s
        while True:
            now = self.get(rollout_id)
            if progress is not None:
                progress(now)
            if is_over(now):
                return now
            _check_time(now, deadline, timeout_s)
            time.sleep(LOOK_S)


class AsyncRollouts:
    """``client.rollouts``. A rollout is named by its id."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def create(self, template: str, request: RolloutCreate | None = None) -> Rollout:
        """Begins to move a template's VMs to one of its versions."""
        asked = request or RolloutCreate()
        return await self._client.send(calls.create_rollout(template, asked))

    def list(
        self,
        *,
        template: str | None = None,
        state: RolloutState | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Rollout]:
        return self._client.pages(
            lambda cursor: calls.list_rollouts(template, state, limit, cursor)
        )

    async def get(self, rollout_id: str) -> Rollout:
        return await self._client.send(calls.get_rollout(rollout_id))

    def vms(self, rollout_id: str, *, limit: int | None = None) -> AsyncIterator[RolloutVm]:
        """In the order of their turn."""
        return self._client.pages(lambda cursor: calls.list_members(rollout_id, limit, cursor))

    async def halt(self, rollout_id: str) -> None:
        """Begins no further batch until it is resumed."""
        await self._client.send(calls.act_on_rollout(rollout_id, "halt"))

    async def resume(self, rollout_id: str) -> None:
        """Goes on; VMs that failed are tried again."""
        await self._client.send(calls.act_on_rollout(rollout_id, "resume"))

    async def cancel(self, rollout_id: str) -> None:
        """Ends it where it is."""
        await self._client.send(calls.act_on_rollout(rollout_id, "cancel"))

    async def rollback(self, rollout_id: str) -> None:
        """Brings every VM that it changed back to what it was."""
        await self._client.send(calls.act_on_rollout(rollout_id, "rollback"))

    async def wait(
        self, rollout_id: str, *, timeout_s: float = WAIT_S, progress: Progress | None = None
    ) -> Rollout:
        """The rollout once it is at an end or halted. Raises WaitTimedOut, which undoes nothing."""
        deadline = time.monotonic() + timeout_s
        while True:
            now = await self.get(rollout_id)
            if progress is not None:
                progress(now)
            if is_over(now):
                return now
            _check_time(now, deadline, timeout_s)
            await anyio.sleep(LOOK_S)
