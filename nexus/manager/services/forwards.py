"""Port forwards: ports of hosts that lead to VMs."""

from collections.abc import Mapping

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Created
from nexus.api.errors import Conflict, InvalidState, NotFound
from nexus.api.networks import MOST_FORWARDS, PortForward, PortForwardCreate
from nexus.ids import new_id
from nexus.manager.db.network_tables import NetworkRow, PortForwardRow
from nexus.manager.db.session import Database
from nexus.manager.pipelines.networks import NetworkPush
from nexus.manager.services.vms import find
from nexus.manager.uow import Caller, change


class Forwards:
    """The rules of forwards. The unique constraint on host, protocol and port decides races."""

    def __init__(self, db: Database, push: NetworkPush, own_ports: Mapping[int, str]) -> None:
        self.db = db
        self.push = push
        self.own_ports = own_ports
        """TCP ports that Nexus itself needs, and whose: a forward of one would cut it off."""

    async def create(self, caller: Caller, ref: str, wish: PortForwardCreate) -> PortForward:
        """Has a port of the VM's host lead to the VM. Raises NotFound, InvalidState or Conflict."""
        owner = self.own_ports.get(wish.host_port) if wish.protocol == "tcp" else None
        if owner is not None:
            raise Conflict(
                f"port {wish.host_port} is {owner}",
                suggestion=f"choose another port, such as {wish.host_port + 1}",
            )
        try:
            async with change(self.db, caller, "forward.create", target=ref) as unit:
                vm = await find(unit.session, caller.project, ref, lock=True)
                nic = next((nic for nic in vm.nics if nic.iface == wish.iface), None)
                if nic is None or vm.power == "deleted":
                    raise NotFound(f"VM {vm.name!r} has no {wish.iface}", suggestion="nexus show")
                network = await unit.session.get(NetworkRow, nic.network_id)
                if network is None or network.kind != "nat":
                    kind = network.kind if network else "unknown"
                    raise InvalidState(
                        f"{wish.iface} is on the {kind} network {nic.network!r}: a host's port "
                        "leads to VMs on NAT networks only",
                        suggestion="give the VM a NIC on a network of kind nat",
                    )
                await _check_room(unit.session, vm.host_id)
                row = PortForwardRow(
                    id=new_id(),
                    project=caller.project,
                    vm_id=vm.id,
                    host_id=vm.host_id,
                    protocol=wish.protocol,
                    host_port=wish.host_port,
                    guest_port=wish.guest_port,
                    iface=wish.iface,
                    ip=nic.ip.partition("/")[0],
                    created_at=unit.at,
                )
                unit.session.add(row)
                unit.target = vm.id
                unit.after = wish.model_dump()
                unit.answer = lambda: Created[PortForward](id=row.id, item=to_forward(row))
                await unit.session.flush()
        except IntegrityError as error:
            raise Conflict(
                f"{wish.protocol} port {wish.host_port} of that host leads to a VM already",
                suggestion="choose another port, or: nexus forward ls",
            ) from error
        self.push.hint()
        return to_forward(row)

    async def delete(self, caller: Caller, ref: str, forward_id: str) -> None:
        """Gives a port back. Raises NotFound."""
        async with change(self.db, caller, "forward.delete", target=ref) as unit:
            vm = await find(unit.session, caller.project, ref)
            row = await unit.session.get(PortForwardRow, forward_id, with_for_update=True)
            if row is None or row.vm_id != vm.id:
                raise NotFound(
                    f"VM {vm.name!r} has no forward {forward_id}",
                    suggestion=f"nexus forward ls {vm.name}",
                )
            unit.target = vm.id
            unit.before = {"protocol": row.protocol, "host_port": row.host_port}
            await unit.session.delete(row)
        self.push.hint()

    async def of_vm(self, project: str, ref: str) -> list[PortForward]:
        """A VM's forwards, by port. Raises NotFound."""
        async with self.db.read() as session:
            vm = await find(session, project, ref)
            query = (
                select(PortForwardRow)
                .where(PortForwardRow.vm_id == vm.id)
                .order_by(PortForwardRow.host_port, PortForwardRow.protocol)
            )
            return [to_forward(row) for row in await session.scalars(query)]


async def _check_room(session: AsyncSession, host_id: str) -> None:
    made = select(func.count()).select_from(PortForwardRow).where(PortForwardRow.host_id == host_id)
    if (await session.scalar(made) or 0) >= MOST_FORWARDS:
        raise Conflict(
            f"{MOST_FORWARDS} ports of that host lead to VMs already, which is as many as can",
            suggestion="give ports back that nobody needs: nexus forward ls, nexus forward rm",
        )


def to_forward(row: PortForwardRow) -> PortForward:
    """A row as the API shows it."""
    return PortForward(
        id=row.id,
        vm_id=row.vm_id,
        host_id=row.host_id,
        protocol=row.protocol,
        host_port=row.host_port,
        guest_port=row.guest_port,
        iface=row.iface,
        ip=row.ip,
        created_at=row.created_at,
    )
