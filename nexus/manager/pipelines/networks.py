"""Telling hosts their networks and port forwards: all of them, whenever anything has changed.

Level-triggered: what a host was told last is compared with what the database says now. A hint only
saves the poll.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
import structlog
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import HostUnreachable, NexusError
from nexus.api.networks import (
    DEFAULT_NETWORK,
    HostForward,
    HostNetworks,
    HostNetworkSpec,
    HostNetworksStatus,
    NetworkState,
)
from nexus.ids import new_id
from nexus.manager.agents import Agent
from nexus.manager.db.network_tables import NetworkRow, PortForwardRow
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow
from nexus.manager.waiters import Waiters

log = structlog.get_logger("pipeline.networks")

DEFAULT_PROJECT = "default"

POLL_S = 2.0
"""The price of a lost hint, and of a change by another manager."""
RETRY_S = 10.0
"""How soon a host that could not make a network tries again: its cause may be gone."""


@dataclass(slots=True)
class NetworkPush:
    """What all hosts' pushes share."""

    db: Database
    waiters: Waiters
    _wakes: set[anyio.Event] = field(default_factory=set)

    def hint(self) -> None:
        """Something has changed."""
        for wake in self._wakes:
            wake.set()

    async def run(self, agent: Agent, host_id: str) -> None:
        """Keeps one host told until cancelled. Raises HostUnreachable, and ValueError for more than
        a host can be told."""
        told: HostNetworks | None = None
        failed_at: float | None = None
        while True:
            wake = anyio.Event()
            self._wakes.add(wake)
            try:
                if failed_at is not None and anyio.current_time() - failed_at > RETRY_S:
                    told = None
                wanted = await self._wanted(host_id)
                if wanted != told:
                    failed_at = None
                    if not await self._tell(agent, host_id, wanted):
                        failed_at = anyio.current_time()
                    told = wanted
                with anyio.move_on_after(POLL_S):
                    await wake.wait()
            finally:
                self._wakes.discard(wake)

    async def _tell(self, agent: Agent, host_id: str, wanted: HostNetworks) -> bool:
        """Whether the host could do all of it."""
        try:
            status = await agent.put_networks(wanted)
        except HostUnreachable:
            raise
        except NexusError as error:
            log.warning("a host refuses its networks", host_id=host_id, error=error.message)
            return False
        await self._apply(host_id, wanted, status)
        return all(network.error is None for network in status.networks)

    async def _wanted(self, host_id: str) -> HostNetworks:
        async with self.db.read() as session:
            host = await session.get(HostRow, host_id)
            if host is None:
                raise HostUnreachable(f"host {host_id} is not known")
            networks = await session.scalars(
                select(NetworkRow)
                .where(or_(NetworkRow.host_id.is_(None), NetworkRow.host_id == host_id))
                .order_by(NetworkRow.id)
            )
            specs = [_spec(row, host) for row in networks]
            forwards = await session.scalars(
                select(PortForwardRow)
                .where(PortForwardRow.host_id == host_id)
                .order_by(PortForwardRow.id)
            )
            return HostNetworks(
                networks=specs,
                forwards=[
                    HostForward(
                        protocol=row.protocol,
                        host_port=row.host_port,
                        ip=row.ip,
                        guest_port=row.guest_port,
                    )
                    for row in forwards
                ],
            )

    async def _apply(self, host_id: str, wanted: HostNetworks, status: HostNetworksStatus) -> None:
        now = datetime.now(UTC)
        asked = {spec.id: spec for spec in wanted.networks}
        async with self.db.write() as session:
            for said in status.networks:
                row = await session.get(NetworkRow, said.id, with_for_update=True)
                host = await session.get(HostRow, host_id)
                if row is None or host is None or _spec(row, host) != asked.get(said.id):
                    continue  # changed meanwhile: the next round tells the host
                state: NetworkState = "ready" if said.error is None else "error"
                if (row.state, row.error, row.bridge) == (state, said.error, said.bridge):
                    continue
                row.state = state
                row.error, row.bridge, row.updated_at = said.error, said.bridge, now
        for said in status.networks:
            self.waiters.notify(said.id)


async def home_network(session: AsyncSession, host: HostRow, now: datetime) -> None:
    """The row of the network that a host's agent made by itself, as it is now."""
    query = select(NetworkRow).where(NetworkRow.host_id == host.id).with_for_update()
    row = (await session.scalars(query)).one_or_none()
    if row is None:
        taken = select(NetworkRow.id).where(
            NetworkRow.project == DEFAULT_PROJECT, NetworkRow.name == DEFAULT_NETWORK
        )
        is_first = await session.scalar(taken) is None
        row = NetworkRow(
            id=new_id(),
            project=DEFAULT_PROJECT,
            name=DEFAULT_NETWORK if is_first else f"{DEFAULT_NETWORK}-{host.id[-12:]}",
            kind="nat",
            host_id=host.id,
            state="ready",
            isolate_vms=False,
            last_address=0,
            created_at=now,
            updated_at=now,
        )
        session.add(row)
    row.cidr, row.gateway = host.network.cidr, host.network.gateway
    row.bridge = host.network.bridge


def _spec(row: NetworkRow, host: HostRow) -> HostNetworkSpec:
    return HostNetworkSpec(
        id=row.id,
        name=row.name,
        kind=row.kind,
        home=row.host_id == host.id,
        cidr=row.cidr,
        gateway=row.gateway,
        uplink=row.uplink,
        isolate_vms=row.isolate_vms,
        dns=row.dns,
        dhcp=row.dhcp,
        allow=row.allow,
    )
