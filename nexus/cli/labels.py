"""What the commands on names and tags do."""

from collections.abc import Mapping

from nexus.api.vms import Vm
from nexus.cli.exits import UsageFault
from nexus.cli.output import as_json, print_json
from nexus.cli.session import Session
from nexus.client import ChangedError

ATTEMPTS = 5


def rename(session: Session, name: str, new: str) -> None:
    with session.client() as client:
        try:
            vm = client.vms.update(name, name=new)
        except ValueError as error:
            raise UsageFault(
                f"{new!r} is no name: write lower-case letters, digits and -"
            ) from error
    _show(session, vm)


def tag(session: Session, name: str, changes: list[str]) -> None:
    """Changes the tags that are named and no others, whoever changes them at the same time."""
    made = [_change(change) for change in changes]
    with session.client() as client:
        for attempt in range(ATTEMPTS):
            vm, etag = client.vms.get_with_etag(name)
            try:
                vm = client.vms.update(vm.id, tags=_changed(vm.tags, made), if_match=etag)
                break
            except ChangedError:
                # Somebody was faster: look again, and change what there is now.
                if attempt == ATTEMPTS - 1:
                    raise
            except ValueError as error:
                raise UsageFault(f"{' '.join(changes)}: not tags a VM can have") from error
    _show(session, vm)


def _change(text: str) -> tuple[str, str | None]:
    """``key=value`` as it is, ``key-`` as a key without a value."""
    key, equals, value = text.partition("=")
    if equals:
        return key, value
    if text.endswith("-") and len(text) > 1:
        return text[:-1], None
    raise UsageFault(f"{text!r}: write key=value to set a tag, or key- to take it away")


def _changed(tags: Mapping[str, str], changes: list[tuple[str, str | None]]) -> dict[str, str]:
    kept = dict(tags)
    for key, value in changes:
        if value is None:
            kept.pop(key, None)
        else:
            kept[key] = value
    return kept


def _show(session: Session, vm: Vm) -> None:
    if session.output == "json":
        print_json({"item": as_json(vm)})
    elif session.output == "name":
        print(vm.name)
    else:
        tags = ", ".join(f"{key}={value}" for key, value in vm.tags.items())
        print(f"{vm.name}: {tags}" if tags else vm.name)
