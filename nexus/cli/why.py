"""What ``nexus why`` prints."""

from nexus.api.vms import VmError
from nexus.cli.events import events_table
from nexus.cli.output import ago, as_json, fields, print_json, show_bytes
from nexus.cli.session import Session


def why(session: Session, name: str) -> None:
    with session.client() as client:
        found = client.vms.why(name)
    if session.output == "json":
        print_json({"item": as_json(found)})
        return
    if session.output == "name":
        print(found.name)
        return
    print(found.summary)
    print()
    fields(
        [
            ("state", found.state),
            ("since", f"{found.since.isoformat(timespec='seconds')} ({ago(found.since)} ago)"),
            ("reason", found.reason),
            ("by", found.actor),
            ("request", found.request_id),
        ]
    )
    if found.error:
        print()
        show_error(found.error)
    if found.log_tail:
        print()
        show_lines(found.log_tail)
    elif found.log_missing:
        print(f"\nno log: {found.log_missing}")
    print()
    events_table(found.events)
    print("\nnext:")
    for command in found.next:
        print(f"  {command}")


def show_error(error: VmError) -> None:
    """Why a VM failed, and what to do."""
    fields(
        [
            ("failed in", error.stage),
            ("because", error.message),
            ("the VMM says", error.fault_message),
            ("try", error.suggestion),
        ]
    )


def show_lines(lines: list[str]) -> None:
    """The end of a log: a guest's words do nothing to a terminal."""
    for line in lines:
        show_bytes(f"  | {line}\n".encode())
