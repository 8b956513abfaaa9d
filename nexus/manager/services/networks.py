"""Networks: making them, changing them, and who is on them."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network

import anyio
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created, Page
from nexus.api.errors import (
    Conflict,
    InUse,
    InvalidState,
    NameTaken,
    NotFound,
    TimedOut,
    ValidationFailed,
)
from nexus.api.networks import (
    MOST_NETWORKS,
    Network,
    NetworkChange,
    NetworkCreate,
    NetworkMember,
    ends_of,
)
from nexus.ids import new_id
from nexus.manager import subnets
from nexus.manager.db.network_tables import IpAddressRow, NetworkRow
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.pipelines.networks import NetworkPush
from nexus.manager.uow import Caller, change
from nexus.manager.waiters import Waiters

POLL_S = 1.0
"""How often to look without a hint: another manager may follow the host."""


class Networks:
    """The rules of networks. Every change is one transaction, then a push to the hosts."""

    def __init__(self, db: Database, push: NetworkPush) -> None:
        self.db = db
        self.push = push

    async def create(self, caller: Caller, request: NetworkCreate) -> Network:
        """Makes the row; the hosts make the rest. Raises NameTaken, Conflict or NoCapacity."""
        network_id = new_id()
        try:
            async with change(self.db, caller, "network.create", target=network_id) as unit:
                session = unit.session
                hosts = (await session.scalars(select(HostRow).with_for_update())).all()
                await _check_room(session)
                if request.uplink is not None:
                    await _check_uplink(session, caller.project, request.uplink)
                taken = await _subnets_taken(session, hosts)
                wanted = IPv4Network(request.cidr) if request.cidr else None
                if wanted is None:
                    wanted = subnets.propose(network_id, [net for net, _ in taken])
                elif request.kind != "bridged":
                    subnets.check_free(wanted, taken)
                _check_reserved(request.reserved, wanted)
                gateway = request.gateway
                if request.kind == "nat":
                    gateway = str(wanted.network_address + 1)
                row = NetworkRow(
                    id=network_id,
                    project=caller.project,
                    name=request.name,
                    kind=request.kind,
                    cidr=str(wanted),
                    gateway=gateway,
                    uplink=request.uplink,
                    isolate_vms=request.isolate_vms,
                    dns=request.dns,
                    dhcp=request.dhcp,
                    reserved=request.reserved,
                    allow=request.allow,
                    bridge="",
                    state="pending",
                    last_address=0,
                    created_at=unit.at,
                    updated_at=unit.at,
                )
                session.add(row)
                unit.after = _facts(row)
                unit.answer = lambda: Created[Network](id=row.id, item=to_network(row, 0))
                await session.flush()
        except IntegrityError as error:
            raise _name_taken(request.name) from error
        self.push.hint()
        return to_network(row, 0)

    async def change(self, caller: Caller, ref: str, request: NetworkChange) -> Network:
        """Changes options of a network; its VMs go on meanwhile.

        Raises NotFound, InvalidState or ValidationFailed.
        """
        given = request.model_fields_set
        async with change(self.db, caller, "network.update", target=ref) as unit:
            row = await find(unit.session, caller.project, ref, lock=True)
            unit.target, unit.before = row.id, _facts(row)
            before = _hosts_part(row)
            if request.isolate_vms is not None:
                row.isolate_vms = request.isolate_vms
            if "dns" in given:
                row.dns = request.dns
            if request.dhcp is not None:
                if request.dhcp and row.kind == "bridged":
                    raise InvalidState(
                        f"{row.name!r} is bridged: it has the DHCP of what is behind its uplink",
                        suggestion="use a network of kind nat or isolated",
                    )
                row.dhcp = request.dhcp
            if request.allow is not None:
                row.allow = request.allow
            if request.reserved is not None:
                _check_reserved(request.reserved, IPv4Network(row.cidr))
                row.reserved = request.reserved
            if _hosts_part(row) != before:
                # What hosts are not told of they do not answer for either.
                row.state, row.error = "pending", None
            row.updated_at = unit.at
            unit.after = _facts(row)
            vms = await _count(unit.session, row.id)
        self.push.hint()
        return to_network(row, vms)

    async def delete(self, caller: Caller, ref: str) -> None:
        """Forgets a network; the hosts remove theirs. Raises NotFound, or InUse with who is on it.

        The host's own network stays.
        """
        async with change(self.db, caller, "network.delete", target=ref) as unit:
            row = await find(unit.session, caller.project, ref, lock=True)
            unit.target, unit.before = row.id, _facts(row)
            if row.host_id is not None:
                raise InUse(
                    f"{row.name!r} is the host's own network",
                    suggestion="it goes with the installation: nexus down",
                )
            on_it = await _members(unit.session, row, limit=5)
            if on_it:
                names = ", ".join(sorted({member.vm_name for member in on_it}))
                raise InUse(
                    f"VMs are on the network {row.name!r}: {names}",
                    suggestion=f"nexus network show {row.name} lists them; delete them first",
                )
            await unit.session.delete(row)
        self.push.hint()

    async def settled(self, network: Network, waiters: Waiters, timeout_s: float) -> Network:
        """The network once a host has made it or said why it cannot.

        Raises TimedOut or NotFound.
        """
        with anyio.move_on_after(timeout_s):
            while True:
                with waiters.listen(network.id) as woken:
                    seen = await self.get(network.project, network.id)
                    if seen.state != "pending":
                        return seen
                    with anyio.move_on_after(POLL_S):
                        await woken.wait()
        raise TimedOut(
            f"no host has the network {network.name!r} after {timeout_s:g} s; it goes on",
            suggestion=f"nexus host ls, then: nexus network show {network.name}",
        )

    async def get(self, project: str, ref: str) -> Network:
        """A network by its id or name. Raises NotFound."""
        async with self.db.read() as session:
            row = await find(session, project, ref)
            return to_network(row, await _count(session, row.id))

    async def page(self, project: str, *, cursor: str | None, limit: int) -> Page[Network]:
        """Networks in the order they were made."""
        query = select(NetworkRow).where(NetworkRow.project == project)
        if cursor is not None:
            query = query.where(NetworkRow.id > cursor)
        async with self.db.read() as session:
            rows = (await session.scalars(query.order_by(NetworkRow.id).limit(limit + 1))).all()
            counts = await _counts(session, [row.id for row in rows])
        more = len(rows) > limit
        return Page(
            items=[to_network(row, counts.get(row.id, 0)) for row in rows[:limit]],
            next_cursor=rows[limit - 1].id if more else None,
        )

    async def members(self, project: str, ref: str) -> list[NetworkMember]:
        """The NICs on a network, by address."""
        async with self.db.read() as session:
            return await _members(session, await find(session, project, ref))


async def find(session: AsyncSession, project: str, ref: str, *, lock: bool = False) -> NetworkRow:
    """A network's row by id or name. Raises NotFound."""
    query = select(NetworkRow).where(NetworkRow.project == project)
    if lock:
        query = query.with_for_update()
    row = (await session.scalars(query.where(NetworkRow.id == ref))).one_or_none()
    if row is None:
        row = (await session.scalars(query.where(NetworkRow.name == ref))).one_or_none()
    if row is None:
        raise NotFound(f"there is no network {ref!r}", suggestion="nexus network ls")
    return row


def to_network(row: NetworkRow, vms: int) -> Network:
    """A row as the API shows it."""
    return Network(
        id=row.id,
        name=row.name,
        project=row.project,
        kind=row.kind,
        state=row.state,
        error=row.error,
        cidr=row.cidr,
        gateway=row.gateway,
        uplink=row.uplink,
        isolate_vms=row.isolate_vms,
        dns=row.dns or [],
        dhcp=row.dhcp,
        reserved=row.reserved,
        allow=row.allow,
        bridge=row.bridge,
        vms=vms,
        created_at=row.created_at,
    )


async def _check_room(session: AsyncSession) -> None:
    """Every host is told of all networks, and has one of its own besides."""
    made = select(func.count()).select_from(NetworkRow).where(NetworkRow.host_id.is_(None))
    if (await session.scalar(made) or 0) >= MOST_NETWORKS - 1:
        raise Conflict(
            f"there are {MOST_NETWORKS - 1} networks already, which is as many as a host takes",
            suggestion="delete networks that nobody is on: nexus network ls, nexus network rm NAME",
        )


async def _check_uplink(session: AsyncSession, project: str, uplink: str) -> None:
    """Two networks behind one uplink would undo each other's rules and give addresses twice."""
    other = await session.scalar(select(NetworkRow).where(NetworkRow.uplink == uplink))
    if other is not None:
        which = f"the network {other.name!r}" if other.project == project else "another network"
        raise Conflict(
            f"{uplink} is the uplink of {which} already",
            suggestion="give VMs a NIC on that network, or name another interface of the host",
        )


async def _subnets_taken(
    session: AsyncSession, hosts: Iterable[HostRow]
) -> list[tuple[IPv4Network, str]]:
    """Subnets that a new network must not overlap, and whose they are."""
    rows = await session.execute(select(NetworkRow.cidr, NetworkRow.name))
    taken = [(IPv4Network(cidr), f"the network {name!r}") for cidr, name in rows]
    for host in hosts:
        taken += [(IPv4Network(net), f"a route of host {host.name}") for net in host.networks]
    return taken


async def _members(
    session: AsyncSession, network: NetworkRow, limit: int | None = None
) -> list[NetworkMember]:
    query = (
        select(VmRow)
        .where(
            VmRow.id.in_(select(IpAddressRow.vm_id).where(IpAddressRow.network_id == network.id))
        )
        .order_by(VmRow.id)
        .limit(limit)
    )
    return [
        NetworkMember(
            vm_id=vm.id, vm_name=vm.name, iface=nic.iface, ip=nic.ip.partition("/")[0], mac=nic.mac
        )
        for vm in await session.scalars(query)
        for nic in vm.nics
        if nic.network_id == network.id
    ]


async def _count(session: AsyncSession, network_id: str) -> int:
    return (await _counts(session, [network_id])).get(network_id, 0)


async def _counts(session: AsyncSession, ids: Sequence[str]) -> dict[str, int]:
    query = (
        select(IpAddressRow.network_id, func.count(IpAddressRow.vm_id.distinct()).label("vms"))
        .where(IpAddressRow.network_id.in_(ids))
        .group_by(IpAddressRow.network_id)
    )
    return {row.network_id: row.vms for row in await session.execute(query)}


def _facts(row: NetworkRow) -> dict[str, object]:
    return {
        "name": row.name,
        "kind": row.kind,
        "cidr": row.cidr,
        "uplink": row.uplink,
        "isolate_vms": row.isolate_vms,
        "dns": row.dns,
        "dhcp": row.dhcp,
        "reserved": row.reserved,
        "allow": row.allow,
    }


def _hosts_part(row: NetworkRow) -> tuple[object, ...]:
    return (row.isolate_vms, row.dns, row.dhcp, row.allow)


def _check_reserved(ranges: Sequence[str], subnet: IPv4Network) -> None:
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    for text in ranges:
        start, end = ends_of(text)
        if start < first or end > last:
            raise ValidationFailed(
                f"reserved: {text} is not in {subnet}",
                suggestion="reserve addresses of the network's own subnet",
            )


def _name_taken(name: str) -> NameTaken:
    return NameTaken(
        f"there is a network named {name!r} already",
        suggestion=f"choose another name, or: nexus network rm {name}",
    )
