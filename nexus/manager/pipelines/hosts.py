"""Keeping hosts: their rows, their heartbeat, and the stream of what changes on them.

See docs/pipelines.md.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

import anyio
import structlog
from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import HostUnreachable, NexusError
from nexus.api.hosts import Capacity, Inventory
from nexus.api.machines import AgentEvent
from nexus.manager import observe
from nexus.manager.agents import Agent, Agents
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.pipelines import measuring, networks
from nexus.manager.pipelines.networks import NetworkPush, home_network
from nexus.manager.pipelines.vms import VmPipeline

log = structlog.get_logger("pipeline.hosts")

HEARTBEAT_S = 3.0
MISSES = 3
"""So many heartbeats without an answer make a host unreachable."""
RETRY_FIRST_S = 0.05
RETRY_MOST_S = 2.0
UNREACHABLE_AFTER_S = HEARTBEAT_S * MISSES
LOST_AFTER_S = 30.0
"""A host silent for this long makes its VMs ``unknown``."""
ORPHAN_GRACE_S = 10.0
"""How long a machine without a row is left alone before it is removed."""
ORPHAN_LOOK_S = 2.0


class HostPipeline:
    """Follows one agent; there is one of these for each agent's address."""

    def __init__(
        self,
        db: Database,
        agents: Agents,
        vms: VmPipeline,
        networks: NetworkPush,
        url: str,
        *,
        heals: bool = True,
    ) -> None:
        self.db = db
        self.agents = agents
        self.vms = vms
        self.counts = vms.counts
        self.networks = networks
        self.url = url
        self.heals = heals
        """Whether it acts on its own: re-sends lost machines, removes orphans."""
        self.orphan_grace_s = ORPHAN_GRACE_S
        self._heard_at = time.monotonic()
        self._orphans: dict[str, float] = {}

    async def run(self) -> None:
        """Follows the agent until cancelled, through every failure."""
        self._heard_at = time.monotonic()
        retry_s = RETRY_FIRST_S
        while True:
            try:
                host_id = await self._greet()
                retry_s = RETRY_FIRST_S
                await self._follow(host_id)
            except* (NexusError, SQLAlchemyError, OSError, ValueError) as group:
                for error in _leaves(group):
                    log.warning("following the agent failed", agent=self.url, error=str(error))
            try:
                await self._note_silence()
            except (SQLAlchemyError, OSError) as error:
                log.warning("the database does not answer", error=str(error))
            await anyio.sleep(retry_s)
            retry_s = min(RETRY_MOST_S, retry_s * 2)

    async def _greet(self) -> str:
        """Registers the host by its inventory."""
        agent = self.agents.at(self.url)
        inventory = await agent.inventory()
        capacity = await agent.capacity()
        await self._upsert(inventory, capacity)
        self.agents.learn(inventory.host_id, self.url)
        self.vms.hint()
        log.info("host is healthy", host_id=inventory.host_id, engine=inventory.engine)
        return inventory.host_id

    async def _upsert(self, inventory: Inventory, capacity: Capacity) -> None:
        now = datetime.now(UTC)
        async with self.db.write() as session:
            row = await session.get(HostRow, inventory.host_id, with_for_update=True)
            if row is None:
                row = HostRow(id=inventory.host_id, created_at=now)
                session.add(row)
            row.name = inventory.hostname
            row.agent_url = self.url
            row.state = "healthy"
            row.engine = inventory.engine
            row.engine_reason = inventory.engine_reason
            row.engine_version = inventory.engine_version
            row.network, row.networks = inventory.network, inventory.networks_in_use
            row.capacity = capacity
            row.run_dir = inventory.run_dir
            row.agent_version = inventory.agent_version
            row.last_seen_at = now
            await session.flush()
            await home_network(session, row, now)
            # Whatever rests after failures of this host need not rest any longer.
            await session.execute(
                update(VmRow)
                .where(VmRow.host_id == inventory.host_id, VmRow.unsettled.is_(True))
                .values(next_attempt_at=now)
            )
        self._heard_at = time.monotonic()

    async def _follow(self, host_id: str) -> None:
        agent = self.agents.at(self.url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat, agent, host_id)
            tasks.start_soon(self._tell_networks, agent, host_id)
            tasks.start_soon(measuring.run, self.db, agent, host_id)
            if self.heals:
                tasks.start_soon(self._reap_orphans, agent)
            await self._listen(agent, host_id)

    async def _tell_networks(self, agent: Agent, host_id: str) -> None:
        """Goes on without the rest of what concerns the host: rows that no host can be told, such
        as too many of them, are no reason to lose sight of its VMs."""
        while True:
            try:
                await self.networks.run(agent, host_id)
            except ValueError as error:
                log.error("a host cannot be told its networks", host_id=host_id, error=str(error))
            await anyio.sleep(networks.RETRY_S)

    async def _beat(self, agent: Agent, host_id: str) -> None:
        misses = 0
        while True:
            await anyio.sleep(HEARTBEAT_S)
            try:
                capacity = await agent.capacity()
            except NexusError:
                misses += 1
                if misses >= MISSES:
                    raise
                continue
            misses = 0
            self._heard_at = time.monotonic()
            async with self.db.write() as session:
                row = await session.get(HostRow, host_id, with_for_update=True)
                if row is not None:
                    row.capacity, row.state = capacity, "healthy"
                    row.last_seen_at = datetime.now(UTC)

    async def _listen(self, agent: Agent, host_id: str) -> None:
        connected_at = datetime.now(UTC)
        held: set[str] = set()
        synced = False
        async with agent.events() as events:
            async for event in events:
                if event.type == "synced":
                    synced = True
                    await self._find_missing(host_id, held, connected_at)
                elif event.type == "gone" and event.vm_id:
                    self._orphans.pop(event.vm_id, None)
                elif event.status is not None:
                    if not synced:
                        held.add(event.status.id)
                    await self._take(event)
        raise HostUnreachable(f"the agent at {self.url} ended its event stream")

    async def _take(self, event: AgentEvent) -> None:
        if event.status is None:
            return
        known = await self.vms.apply_pushed(event.status)
        if not known:
            self._orphans.setdefault(event.status.id, time.monotonic())

    async def _find_missing(self, host_id: str, held: set[str], connected_at: datetime) -> None:
        """Has VMs sent again that a host should hold and does not."""
        if not self.heals:
            return
        missing = select(VmRow).where(
            VmRow.host_id == host_id, VmRow.unsettled.is_(False), VmRow.observed_at < connected_at
        )
        async with self.db.read() as session:
            lost = [row.id for row in await session.scalars(missing) if row.id not in held]
        if not lost:
            return
        now = datetime.now(UTC)
        async with self.db.write() as session:
            query = missing.where(VmRow.id.in_(lost)).with_for_update()
            sent = (await session.scalars(query)).all()
            for row in sent:
                log.warning("the host does not hold this VM; sending it again", vm_id=row.id)
                observe.unsettle(row, now)
        self.counts.acted("vm_sent_again", len(sent))
        self.vms.hint()

    async def _reap_orphans(self, agent: Agent) -> None:
        while True:
            await anyio.sleep(min(ORPHAN_LOOK_S, self.orphan_grace_s / 2))
            now = time.monotonic()
            for vm_id, since in list(self._orphans.items()):
                if now - since < self.orphan_grace_s:
                    continue
                async with self.db.read() as session:
                    has_row = await session.get(VmRow, vm_id) is not None
                if not has_row:
                    log.warning("removing a machine that no row knows", vm_id=vm_id)
                    await agent.delete_vm(vm_id)
                    self.counts.acted("orphan_removed")
                self._orphans.pop(vm_id, None)

    async def _note_silence(self) -> None:
        """Marks what follows from how long nobody, here or in another manager, heard the host."""
        here_s = time.monotonic() - self._heard_at
        if here_s < UNREACHABLE_AFTER_S:
            return
        now = datetime.now(UTC)
        hosts = vms = 0
        async with self.db.write() as session:
            query = select(HostRow).where(HostRow.agent_url == self.url).with_for_update()
            for host in await session.scalars(query):
                silence_s = min(here_s, (now - host.last_seen_at).total_seconds())
                if silence_s >= UNREACHABLE_AFTER_S:
                    hosts += host.state != "unreachable"
                    host.state = "unreachable"
                if silence_s >= LOST_AFTER_S:
                    vms += await self._lose(session, host, now)
        self.counts.acted("host_unreachable", hosts)
        self.counts.acted("vm_unknown", vms)

    async def _lose(self, session: AsyncSession, host: HostRow, now: datetime) -> int:
        """How many VMs there are of which nothing is known any more."""
        vms = select(VmRow).where(
            VmRow.host_id == host.id, VmRow.state.not_in(("unknown", "deleting"))
        )
        lost = (await session.scalars(vms.with_for_update())).all()
        for vm in lost:
            observe.lose_host(session, vm, now)
        return len(lost)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Sequence[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
