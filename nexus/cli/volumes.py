"""What the commands on volumes do."""

from nexus.api.volumes import Volume, VolumeCreate
from nexus.cli.actions import each
from nexus.cli.devices import mib
from nexus.cli.exits import UsageFault, problems
from nexus.cli.output import ago, as_json, fields, print_json, table
from nexus.cli.session import Session

HEADINGS = ("NAME", "STATE", "SIZE", "VM", "AGE", "ID")


def _row(volume: Volume) -> tuple[str, ...]:
    return (
        volume.name,
        volume.state,
        f"{volume.size_mib} MiB",
        volume.vm_name or "",
        ago(volume.created_at),
        volume.id,
    )


def ls(session: Session) -> None:
    with session.client() as client:
        found = list(client.volumes.list())
    if session.output == "json":
        print_json({"items": [as_json(volume) for volume in found], "next_cursor": None})
    elif session.output == "name":
        for volume in found:
            print(volume.name)
    else:
        table(HEADINGS, [_row(volume) for volume in found])


def create(session: Session, name: str, size: str) -> None:
    size_mib = mib("--size", size)
    try:
        spec = VolumeCreate(name=name, size_mib=size_mib)
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    with session.client() as client:
        volume = client.volumes.create(spec)
    if session.output == "json":
        print_json({"id": volume.id, "item": as_json(volume)})
    elif session.output == "name":
        print(volume.name)
    else:
        table(HEADINGS, [_row(volume)])


def show(session: Session, name: str) -> None:
    with session.client() as client:
        volume = client.volumes.get(name)
    if session.output == "json":
        print_json({"item": as_json(volume)})
    elif session.output == "name":
        print(volume.name)
    else:
        fields(
            [
                ("name", volume.name),
                ("id", volume.id),
                ("state", volume.state),
                ("size", f"{volume.size_mib} MiB"),
                ("VM", volume.vm_name),
                ("host", volume.host_id),
                ("created", volume.created_at.isoformat(timespec="seconds")),
            ]
        )


def remove(session: Session, names: list[str]) -> None:
    each(session, names, lambda client, name: client.volumes.delete(name))
