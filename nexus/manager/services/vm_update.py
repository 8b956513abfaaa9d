"""Changing what a VM is called and how it is tagged. Its guest notices nothing of it."""

from sqlalchemy.exc import IntegrityError

from nexus.api.vms import Vm, VmUpdate
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from nexus.manager.services.vm_creation import check_free, name_taken
from nexus.manager.services.vms import find_for, to_vm
from nexus.manager.uow import Caller, UnitOfWork, change


async def update(db: Database, ref: str, wanted: VmUpdate, caller: Caller) -> Vm:
    """Changes the fields that were given. Its host name a guest gets at its next start.

    Raises NotFound, NameTaken, PreconditionFailed.
    """
    try:
        async with change(db, caller, "vm.update", target=ref) as unit:
            row = await find_for(unit, ref)
            unit.before, unit.after = {}, {}
            if "name" in wanted.model_fields_set and wanted.name != row.name:
                await check_free(unit.session, row.project, [wanted.name])
                _change(unit, row, "name", wanted.name)
                renamed = f"renamed from {unit.before['name']} to {row.name}"
                unit.event(row, row.state, "renamed", renamed)
            if "tags" in wanted.model_fields_set and wanted.tags != row.tags:
                _change(unit, row, "tags", wanted.tags)
                unit.event(row, row.state, "tags_changed", _difference(unit))
            if unit.after:
                row.updated_at = unit.at
    except IntegrityError:
        raise name_taken(wanted.name) from None
    return to_vm(row)


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
