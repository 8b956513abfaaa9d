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


def create(session: Session, name: str, size: str | None, image: str | None) -> None:
    given = {
        "name": name,
        "size_mib": None if size is None else mib("--size", size),
        "image": image,
    }
    try:
        spec = VolumeCreate.model_validate({k: v for k, v in given.items() if v is not None})
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    with session.client() as client:
        volume = client.volumes.create(spec)
    _tell_made(session, volume)


def snapshot(session: Session, name: str, copy: str) -> None:
    with session.client() as client:
        volume = client.volumes.snapshot(name, copy)
    _tell_made(session, volume)


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
                ("image", volume.image.name if volume.image else None),
                ("VM", volume.vm_name),
                ("drive", volume.drive),
                ("host", volume.host_id),
                ("created", volume.created_at.isoformat(timespec="seconds")),
            ]
        )


def attach(
    session: Session,
    name: str,
    vm: str,
    drive: str | None,
    *,
    read_only: bool,
    reboot: bool,
    timeout_s: float,
) -> None:
    try:
        with session.client() as client:
            volume = client.volumes.attach(
                name, vm, name=drive, read_only=read_only, restart=reboot, timeout_s=timeout_s
            )
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    _tell_changed(session, volume)


def detach(session: Session, name: str, *, reboot: bool, timeout_s: float) -> None:
    with session.client() as client:
        volume = client.volumes.detach(name, restart=reboot, timeout_s=timeout_s)
    _tell_changed(session, volume)


def grow(session: Session, name: str, size: str, timeout_s: float) -> None:
    size_mib = mib("SIZE", size)
    with session.client() as client:
        volume = client.volumes.update(name, size_mib=size_mib, timeout_s=timeout_s)
    _tell_changed(session, volume)


def rename(session: Session, name: str, new: str) -> None:
    try:
        with session.client() as client:
            volume = client.volumes.update(name, name=new)
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    _tell_changed(session, volume)


def remove(session: Session, names: list[str]) -> None:
    each(session, names, lambda client, name: client.volumes.delete(name))


def _tell_made(session: Session, volume: Volume) -> None:
    if session.output == "json":
        print_json({"id": volume.id, "item": as_json(volume)})
    elif session.output == "name":
        print(volume.name)
    else:
        table(HEADINGS, [_row(volume)])


def _tell_changed(session: Session, volume: Volume) -> None:
    if session.output == "json":
        print_json({"item": as_json(volume)})
    else:
        print(volume.name)
