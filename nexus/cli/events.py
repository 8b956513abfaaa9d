"""What the commands on events do."""

from nexus.api.vms import VmEvent
from nexus.cli.output import as_json, print_json, table
from nexus.cli.session import Session


def events(session: Session, name: str) -> None:
    with session.client() as client:
        found = list(client.vms.events(name))
    if session.output == "json":
        print_json({"items": [as_json(event) for event in found], "next_cursor": None})
    else:
        events_table(found)


def events_table(found: list[VmEvent]) -> None:
    """Events as a table, in the order given."""
    rows = [
        (
            event.at.isoformat(timespec="milliseconds"),
            event.state,
            event.reason,
            event.actor,
            event.message,
        )
        for event in found
    ]
    table(("TIME", "STATE", "REASON", "BY", "MESSAGE"), rows)
