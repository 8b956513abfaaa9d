"""Why a VM reaches nothing: what its host finds, and what the host cannot know."""

from collections.abc import Collection, Sequence

from sqlalchemy import select

from nexus.api.doctor import Check, Diagnosis, NetworkDoctor
from nexus.api.errors import NexusError
from nexus.api.networks import HostForward
from nexus.manager.agents import Agents
from nexus.manager.db.network_tables import PortForwardRow
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow
from nexus.manager.services.vms import find


async def examine(db: Database, agents: Agents, ref: str, project: str) -> NetworkDoctor:
    """Raises NotFound. A host that does not answer is a finding."""
    async with db.read() as session:
        vm = await find(session, project, ref)
        host = await session.get_one(HostRow, vm.host_id)
        rows = await session.scalars(
            select(PortForwardRow)
            .where(PortForwardRow.vm_id == vm.id)
            .order_by(PortForwardRow.host_port, PortForwardRow.protocol)
        )
        wanted = [
            HostForward(
                protocol=row.protocol,
                host_port=row.host_port,
                ip=row.ip,
                guest_port=row.guest_port,
            )
            for row in rows
        ]
    found = Diagnosis(checks=[])
    try:
        found = await agents.of(vm.host_id).network_doctor(vm.id)
        about_host = Check(step="host", outcome="ok", message=f"the host {host.name} answers")
    except NexusError as error:
        about_host = _silent(host.name, vm.name, error)
    checks = [about_host, *found.checks]
    if about_host.outcome == "ok":
        checks += untold(wanted, found.forwards)
    return NetworkDoctor(
        vm_id=vm.id,
        name=vm.name,
        healthy=all(check.outcome != "bad" for check in checks),
        checks=checks,
    )


def untold(wanted: Sequence[HostForward], told: Collection[HostForward]) -> list[Check]:
    """Forwards that have not come to the host."""
    return [
        Check(
            step="forward",
            outcome="bad",
            message=f"the host was not told yet of {each.protocol} port {each.host_port}",
            suggestion="look again in some seconds; the manager's log tells why it takes longer",
        )
        for each in wanted
        if each not in told
    ]


def _silent(host: str, vm: str, error: NexusError) -> Check:
    if error.status == 404:
        message = f"the host {host} does not have {vm}: {error.message}"
        cure = f"nexus why {vm}"
    else:
        message = f"the host {host} cannot be asked: {error.message}"
        cure = error.suggestion or "nexus host ls"
    return Check(step="host", outcome="bad", message=message, suggestion=cure)
