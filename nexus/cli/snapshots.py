"""What the commands on snapshots do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nexus.api.snapshots import SnapshotKind
from nexus.api.vm_snapshots import Snapshot, SnapshotClone, SnapshotState
from nexus.api.vms import Vm, WaitState
from nexus.cli import terms, vms
from nexus.cli.actions import each
from nexus.cli.exits import UsageFault, problems
from nexus.cli.output import ago, as_json, fields, print_json, size, table
from nexus.cli.session import Session
from nexus.client import NexusApiError

HEADINGS = ("NAME", "STATE", "VM", "KIND", "MEM", "ON DISK", "PAUSED", "AGE", "ID")


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    return (
        snapshot.name,
        snapshot.state,
        snapshot.vm_name,
        snapshot.kind,
        f"{snapshot.mem_mib}M",
        "-" if snapshot.disk_bytes is None else size(snapshot.disk_bytes),
        "-" if snapshot.pause_ms is None else f"{snapshot.pause_ms:.0f} ms",
        ago(snapshot.created_at),
        snapshot.id,
    )


@contextmanager
def elapsing(session: Session, what: str) -> Iterator[None]:
    """While it lasts, says on a terminal what is done and for how long."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    quiet = session.output is not None or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        progress.add_task(what, total=None)
        yield


def create(
    session: Session,
    vm: str,
    name: str | None,
    kind: SnapshotKind,
    *,
    wait: bool,
    timeout_s: float,
) -> None:
    try:
        with session.client() as client, elapsing(session, f"taking a snapshot of {vm}"):
            made = client.snapshots.create(vm, name=name, kind=kind, wait=wait, timeout_s=timeout_s)
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    print_snapshot(session, made)
    if made.error is not None:
        raise NexusApiError(
            409,
            "invalid_state",
            f"{made.name} was not taken: {made.error.message}",
            suggestion=made.error.suggestion,
            fault_message=made.error.fault_message,
        )


def print_snapshot(session: Session, made: Snapshot) -> None:
    """What was made, in the form that was asked for."""
    if session.output == "json":
        print_json({"id": made.id, "item": as_json(made)})
    elif session.output == "name":
        print(made.name)
    else:
        table(HEADINGS, [_row(made)])


def ls(session: Session, vm: str | None, name: str | None, state: SnapshotState | None) -> None:
    with session.client() as client:
        found = list(client.snapshots.list(vm=vm, name=name, state=state))
    if session.output == "json":
        print_json({"items": [as_json(one) for one in found], "next_cursor": None})
    elif session.output == "name":
        for one in found:
            print(one.name)
    else:
        table(HEADINGS, [_row(one) for one in found])


def show(session: Session, name: str) -> None:
    with session.client() as client:
        found = client.snapshots.get(name)
    if session.output == "json":
        print_json({"item": as_json(found)})
        return
    if session.output == "name":
        print(found.name)
        return
    error = found.error
    fields(
        [
            ("name", found.name),
            ("id", found.id),
            ("state", found.state),
            ("failed in", error.stage if error else None),
            ("because", error.message if error else None),
            ("the VMM says", error.fault_message if error else None),
            ("try", error.suggestion if error else None),
            ("VM", f"{found.vm_name} ({found.vm_id or 'imported'})"),
            ("kind", _kind(found)),
            ("made by", "the VM's schedule" if found.scheduled else None),
            ("host", found.host_id),
            ("engine", f"{found.engine} {found.vmm_version or ''}".strip()),
            ("CPU", found.cpu),
            ("CPU template", found.cpu_template),
            ("vcpu", str(found.vcpu)),
            ("memory", f"{found.mem_mib} MiB"),
            ("kernel", found.kernel.name),
            ("rootfs", found.rootfs.name if found.rootfs else None),
            ("guest stood", None if found.pause_ms is None else f"{found.pause_ms:.1f} ms"),
            ("taken", found.taken_at.isoformat(timespec="seconds") if found.taken_at else None),
            ("size", size(found.size_bytes) if found.size_bytes is not None else None),
            ("on disk", size(found.disk_bytes) if found.disk_bytes is not None else None),
        ]
    )
    if found.files:
        print()
        table(
            ("FILE", "SIZE", "ON DISK", "SHA256"),
            [(f.name, size(f.size_bytes), size(f.disk_bytes), f.sha256) for f in found.files],
        )


def _kind(snapshot: Snapshot) -> str:
    if snapshot.parent_id is None:
        return snapshot.kind
    needs = "needs" if snapshot.needs_parent else "merged, once on top of"
    return f"{snapshot.kind} ({needs} {snapshot.parent_id})"


def rename(session: Session, name: str, new_name: str) -> None:
    try:
        with session.client() as client:
            found = client.snapshots.rename(name, new_name)
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    if session.output == "json":
        print_json({"item": as_json(found)})
    else:
        print(found.name)


def remove(session: Session, names: list[str], *, merge: bool) -> None:
    each(session, names, lambda client, name: client.snapshots.delete(name, merge=merge))


def clone(
    session: Session,
    snapshot: str,
    given: dict[str, Any],
    tags: Sequence[str],
    until: tuple[str | None, str | None, str | None],
    *,
    start: bool,
    wait: bool,
    timeout_s: float,
) -> None:
    wished = given | terms.given(*until)
    known = {key: value for key, value in wished.items() if value is not None}
    if tags:
        known["tags"] = terms.tags_of(tags)
    try:
        request = SnapshotClone.model_validate({**known, "start": start})
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    goal: WaitState = "running" if start else "paused"
    with session.client() as client, elapsing(session, f"loading {snapshot}"):
        made = client.snapshots.clone(
            snapshot, request, wait=goal if wait else None, timeout_s=timeout_s
        )
    vms.print_vms(session, [*made], many=request.count is not None)
    vms.refuse_failed([*made])


def restore(
    session: Session, vm: str, snapshot: str, *, start: bool, wait: bool, timeout_s: float
) -> None:
    goal: WaitState = "running" if start else "paused"
    try:
        with session.client() as client, elapsing(session, f"loading {snapshot}"):
            back: Vm = client.vms.restore(
                vm, snapshot, start=start, wait=goal if wait else None, timeout_s=timeout_s
            )
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    vms.print_vms(session, [back], many=False)
