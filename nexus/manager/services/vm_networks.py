"""Which networks a new VM's NICs are on, and with which addresses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from sqlalchemy import BindParameter, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.devices import NicCreate
from nexus.api.errors import Conflict, InvalidState, NotFound, ValidationFailed
from nexus.api.networks import DEFAULT_NETWORK
from nexus.manager import devices, ipam
from nexus.manager.db.columns import StoredNic
from nexus.manager.db.network_tables import IpAddressRow, NetworkRow
from nexus.manager.db.tables import HostRow

_NAMES: BindParameter[str] = bindparam("names", expanding=True)
_ASKED_FOR = (
    select(NetworkRow)
    .where(
        or_(
            NetworkRow.host_id.in_(bindparam("hosts", expanding=True)),
            (NetworkRow.project == bindparam("project"))
            & (NetworkRow.name.in_(_NAMES) | NetworkRow.id.in_(_NAMES)),
        )
    )
    .with_for_update()
)
_USED = select(IpAddressRow.address).where(IpAddressRow.network_id == bindparam("network"))


@dataclass(slots=True)
class _Pool:
    """A network's addresses within one transaction."""

    row: NetworkRow
    used: set[int]
    free: Iterator[IPv4Address]


class AddressBook:
    """Hands out addresses for the VMs of one request; ``taken`` are the rows that say so."""

    def __init__(self, pools: dict[tuple[str, str], _Pool]) -> None:
        self._pools = pools
        """By host and by what the request calls the network."""
        self.taken: list[IpAddressRow] = []

    @classmethod
    async def open(
        cls,
        session: AsyncSession,
        project: str,
        nics: Sequence[NicCreate],
        hosts: Sequence[HostRow],
        count: int,
    ) -> "AddressBook":
        """The networks that the NICs name, locked. Raises NotFound or InvalidState."""
        if count > 1 and any(nic.ip for nic in nics):
            raise ValidationFailed(
                "nics.ip: one address cannot be that of several VMs",
                suggestion="leave the address away, or make the VMs one by one",
            )
        names = {nic.network or DEFAULT_NETWORK for nic in nics}
        host_ids = {host.id for host in hosts}
        asked = {"hosts": list(host_ids), "project": project, "names": list(names)}
        rows = (await session.scalars(_ASKED_FOR, asked)).all()
        pools: dict[tuple[str, str], _Pool] = {}
        by_id: dict[str, _Pool] = {}
        for host_id in host_ids:
            for name in names:
                row = _pick(rows, host_id, name)
                if row.id not in by_id:
                    by_id[row.id] = await _pool(session, row)
                pools[host_id, name] = by_id[row.id]
        return cls(pools)

    def nics_of(self, vm_id: str, host: HostRow, wanted: Sequence[NicCreate]) -> list[StoredNic]:
        """The NICs of one VM. The first that has a gateway leads out.

        Raises AddressPoolExhausted, Conflict or ValidationFailed.
        """
        nics: list[StoredNic] = []
        for index, nic in enumerate(wanted):
            pool = self._pools[host.id, nic.network or DEFAULT_NETWORK]
            row = pool.row
            address = _fixed(pool, nic.ip) if nic.ip else _next(pool)
            pool.used.add(int(address))
            self.taken.append(IpAddressRow(network_id=row.id, address=int(address), vm_id=vm_id))
            leads_out = row.gateway is not None and not any(each.gateway for each in nics)
            servers = _dns(row, host) if leads_out or row.dhcp else []
            nics.append(
                StoredNic(
                    iface=f"eth{index}",
                    mac=ipam.mac_for(vm_id, f"eth{index}"),
                    ip=ipam.with_prefix(address, row.cidr),
                    gateway=row.gateway if leads_out else None,
                    dns=servers,
                    limits=devices.simplified(nic.limits),
                    network=row.name,
                    network_id=row.id,
                    home=row.host_id is not None,
                )
            )
        return nics


def _pick(rows: Sequence[NetworkRow], host_id: str, name: str) -> NetworkRow:
    home = next((row for row in rows if row.host_id == host_id), None)
    if home is not None and name in (DEFAULT_NETWORK, home.id, home.name):
        return home
    row = next((row for row in rows if name in (row.id, row.name)), None)
    if row is None or row.host_id is not None:
        raise NotFound(f"there is no network {name!r}", suggestion="nexus network ls")
    if row.state != "ready":
        because = f": {row.error.message}" if row.error else ""
        raise InvalidState(
            f"the network {row.name!r} is not there yet{because}",
            suggestion=(row.error.suggestion if row.error else None)
            or f"nexus network show {row.name}",
        )
    return row


async def _pool(session: AsyncSession, row: NetworkRow) -> _Pool:
    used = set(await session.scalars(_USED, {"network": row.id}))
    free = ipam.free_addresses(row.cidr, row.gateway, used, row.last_address, row.reserved)
    return _Pool(row, used, free)


def _next(pool: _Pool) -> IPv4Address:
    address = next(free for free in pool.free if int(free) not in pool.used)
    pool.row.last_address = int(address)
    return address


def _fixed(pool: _Pool, text: str) -> IPv4Address:
    address, subnet = IPv4Address(text), IPv4Network(pool.row.cidr)
    ends = (subnet.network_address, subnet.broadcast_address, subnet.network_address + 1)
    if address not in subnet or address in ends or text == pool.row.gateway:
        raise ValidationFailed(
            f"nics.ip: {address} is not an address for VMs of {pool.row.name!r} ({subnet})",
            suggestion="choose one of its subnet, but neither its gateway nor its first and last",
        )
    if int(address) in pool.used:
        raise Conflict(
            f"{address} is in use on the network {pool.row.name!r}",
            suggestion=f"nexus network show {pool.row.name} lists who has which address",
        )
    return address


def _dns(row: NetworkRow, host: HostRow) -> list[str]:
    if row.dhcp:
        return [str(IPv4Network(row.cidr).network_address + 1)]
    return row.dns if row.dns is not None else host.network.dns
