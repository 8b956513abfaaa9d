"""Changing what a VM is called, how it is tagged, what follows its end and when its time is up.
Its guest notices nothing of it."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import InvalidState
from nexus.api.vms import Vm, VmUpdate
from nexus.manager import wanting
from nexus.manager.db.network_tables import NetworkRow
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.pipelines.expiry import ExpiryPipeline
from nexus.manager.pipelines.vms import VmPipeline
from nexus.manager.services.vm_creation import check_free, name_taken
from nexus.manager.services.vm_expiry import deadline
from nexus.manager.services.vms import find_for, to_vm
from nexus.manager.uow import Caller, UnitOfWork, change

_TERMS = frozenset({"restart_policy", "ttl", "expires_at"})


async def update(
    db: Database,
    pipeline: VmPipeline,
    expiry: ExpiryPipeline,
    ref: str,
    wanted: VmUpdate,
    caller: Caller,
) -> Vm:
    """Changes the fields that were given. Its host name a guest gets at its next start, its name in
    DNS at once.

    Raises NotFound, NameTaken, PreconditionFailed, InvalidState, ValidationFailed.
    """
    told = False
    try:
        async with change(db, caller, "vm.update", target=ref) as unit:
            row = await find_for(unit, ref)
            unit.before, unit.after = {}, {}
            if "name" in wanted.model_fields_set and wanted.name != row.name:
                await check_free(unit.session, row.project, [wanted.name])
                _change(unit, row, "name", wanted.name)
                renamed = f"renamed from {unit.before['name']} to {row.name}"
                unit.event(row, row.state, "renamed", renamed)
                if row.power != "deleted" and await _has_a_dns_name(unit.session, row):
                    wanting.anew(unit, row)
                    told = True
            if "tags" in wanted.model_fields_set and wanted.tags != row.tags:
                _change(unit, row, "tags", wanted.tags)
                unit.event(row, row.state, "tags_changed", _difference(unit))
            if unit.after:
                row.updated_at = unit.at
            if wanted.model_fields_set & _TERMS and _change_terms(unit, row, wanted):
                told = True
            if told:
                pipeline.take(row, unit.at)
    except IntegrityError:
        raise name_taken(wanted.name) from None
    if told:
        pipeline.begin(row)
        expiry.hint()
    return to_vm(row)


async def _has_a_dns_name(session: AsyncSession, row: VmRow) -> bool:
    """Whether a host serves names on a network that the VM is on."""
    networks = [nic.network_id for nic in row.nics]
    query = select(NetworkRow.id).where(NetworkRow.id.in_(networks), NetworkRow.dhcp)
    return await session.scalar(query.limit(1)) is not None


def _change_terms(unit: UnitOfWork, row: VmRow, wanted: VmUpdate) -> bool:
    """What the agent has to know as well; whether anything is new to it."""
    if row.power == "deleted":
        raise InvalidState(f"VM {row.name!r} is being deleted", suggestion="nexus ls")
    said = []
    if "restart_policy" in wanted.model_fields_set and wanted.restart_policy != row.restart_policy:
        _change(unit, row, "restart_policy", wanted.restart_policy)
        said.append(f"restart policy {row.restart_policy}")
    if wanted.model_fields_set & {"ttl", "expires_at"}:
        new = deadline(unit.at, wanted.ttl, wanted.expires_at)
        if new != row.expires_at:
            old, row.expires_at = row.expires_at, new
            unit.before = {**(unit.before or {}), "expires_at": _time(old)}
            unit.after = {**(unit.after or {}), "expires_at": _time(new)}
            said.append(f"expires {_time(new) or 'never'}")
    if said:
        wanting.change(unit, row, "terms_changed", ", ".join(said))
    return bool(said)


def _time(at: datetime | None) -> str | None:
    return at.isoformat(timespec="seconds") if at else None


def _change(unit: UnitOfWork, row: VmRow, field: str, value: object) -> None:
    unit.before = {**(unit.before or {}), field: getattr(row, field)}
    unit.after = {**(unit.after or {}), field: value}
    setattr(row, field, value)


def _difference(unit: UnitOfWork) -> str:
    before, after = (side["tags"] for side in (unit.before or {}, unit.after or {}))
    return f"tags were {_shown(before)}, are {_shown(after)}"


def _shown(tags: object) -> str:
    if not isinstance(tags, dict) or not tags:
        return "none"
    return ", ".join(f"{key}={value}" for key, value in sorted(tags.items()))
