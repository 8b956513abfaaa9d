"""What the commands on snapshot schedules do."""

from nexus.api.vm_snapshots import SnapshotSchedule
from nexus.cli.exits import UsageFault, problems
from nexus.cli.output import as_json, fields, print_done, print_json
from nexus.cli.session import Session
from nexus.cli.terms import seconds


def schedule(session: Session, vm: str, every: str | None, keep: int | None) -> None:
    if (every is None) != (keep is None):
        raise UsageFault("say both: --every 6h --keep 7")
    try:
        with session.client() as client:
            if every is None or keep is None:
                found = client.vms.snapshot_schedule(vm)
            else:
                found = client.vms.set_snapshot_schedule(
                    vm, every_s=seconds(every, "--every"), keep=keep
                )
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    _show(session, vm, found)


def _show(session: Session, vm: str, found: SnapshotSchedule) -> None:
    if session.output == "json":
        print_json({"item": as_json(found)})
    elif session.output == "name":
        print(vm)
    else:
        fields(
            [
                ("VM", vm),
                ("every", f"{found.every} s"),
                ("keep", str(found.keep)),
                ("next", found.next_at.isoformat(timespec="seconds")),
                ("last not taken", found.last_error),
            ]
        )


def unschedule(session: Session, vm: str) -> None:
    with session.client() as client:
        client.vms.delete_snapshot_schedule(vm)
    if session.output == "json":
        print_done([vm])
    else:
        print(vm)
