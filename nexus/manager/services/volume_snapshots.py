"""Snapshots of volumes: a new volume that begins as another one is."""

from dataclasses import replace

from sqlalchemy import select

from nexus.api.common import Created
from nexus.api.errors import HostUnreachable, InvalidState, NexusError, NotFound
from nexus.api.quotas import Resources
from nexus.api.volumes import Volume
from nexus.ids import new_id
from nexus.manager import lifecycle
from nexus.manager.agents import Agents
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow, VolumeRow
from nexus.manager.services import quotas
from nexus.manager.services.volume_rows import check_whole, holder_of, to_volume
from nexus.manager.services.volumes import locked, name_taken
from nexus.manager.uow import Caller, UnitOfWork, change


class VolumeSnapshots:
    """Only of volumes that nobody writes to, so that a copy is what the disk was at one moment,
    with every file system on it closed."""

    def __init__(self, db: Database, agents: Agents) -> None:
        self.db = db
        self.agents = agents

    async def take(self, caller: Caller, ref: str, name: str) -> Volume:
        """Makes the copy; answers when it is whole.

        First there is its row, then its file, then it can be used; cut off anywhere, the same call
        goes on with it. Raises NotFound, NameTaken, InvalidState for a VM that runs with it,
        NoCapacity, QuotaExceeded, or HostUnreachable: then it stays ``copying``.
        """
        # The key is kept with the last step: a request that was cut off is to be done again.
        first = replace(caller, claim=None)
        async with change(self.db, first, "volume.snapshot", target=ref) as unit:
            source, vm = await locked(unit, ref)
            row = await _copy_row(unit, source, vm, name)
        try:
            await self.agents.of(row.host_id).copy_volume(source.id, row.id)
        except HostUnreachable:
            raise
        except NexusError:
            await self._forget(first, row.id)
            raise
        async with change(self.db, caller, "volume.snapshot_taken", target=row.id) as unit:
            made = await unit.session.get(
                VolumeRow, row.id, with_for_update=True, populate_existing=True
            )
            if made is None or made.deleting:
                raise NotFound(f"the volume {name!r} was deleted meanwhile")
            made.source_id = None
            unit.answer = lambda: Created[Volume](id=made.id, item=to_volume(made, None))
        return to_volume(made, None)

    async def _forget(self, caller: Caller, volume_id: str) -> None:
        """The host refused, and made nothing."""
        async with change(self.db, caller, "volume.snapshot_refused", target=volume_id) as unit:
            row = await unit.session.get(VolumeRow, volume_id, with_for_update=True)
            if row is not None and row.source_id is not None:
                await unit.session.delete(row)


async def _copy_row(unit: UnitOfWork, source: VolumeRow, vm: VmRow | None, name: str) -> VolumeRow:
    """The copy's row, new or from a call that was cut off."""
    check_whole(source)
    held = await holder_of(unit.session, source) is not None
    if held and vm is not None and not lifecycle.at_rest(vm.state, vm.power, vm.restart_at):
        raise InvalidState(
            f"VM {vm.name!r} is {vm.state} and may write to the volume {source.name!r}",
            suggestion=f"nexus stop {vm.name}, or snapshot the VM",
        )
    same = select(VolumeRow).where(VolumeRow.project == source.project, VolumeRow.name == name)
    row = await unit.session.scalar(same.with_for_update())
    if row is not None:
        if row.source_id != source.id or row.deleting:
            raise name_taken(name)
        return row
    await quotas.admit(unit.session, source.project, Resources(disk_mib=source.size_mib))
    row = VolumeRow(
        id=new_id(),
        project=source.project,
        name=name,
        host_id=source.host_id,
        size_mib=source.size_mib,
        image=source.image,
        source_id=source.id,
        deleting=False,
        created_at=unit.at,
        updated_at=unit.at,
    )
    unit.session.add(row)
    unit.after = {"id": row.id, "name": row.name, "size_mib": row.size_mib}
    return row
