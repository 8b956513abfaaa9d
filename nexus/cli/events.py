"""What ``nexus events`` does."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import get_args

from nexus.api.vms import VmEvent, VmState
from nexus.cli.exits import UsageFault
from nexus.cli.output import Form, as_json, print_json, table
from nexus.cli.session import Session
from nexus.client import Client, EventsLost

RECENT = timedelta(hours=24)
"""What is listed when neither a VM nor a time was given."""
_SPAN = re.compile(r"(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WIDTHS = (24, 16, 10, 18, 10, 0)
HEADINGS = ("TIME", "VM", "STATE", "REASON", "BY", "MESSAGE")


@dataclass(frozen=True)
class EventOptions:
    name: str | None
    follow: bool
    since: str | None
    after: int | None
    states: list[str]
    reasons: list[str]


def events(session: Session, options: EventOptions) -> None:
    since = moment(options.since, datetime.now(UTC)) if options.since else None
    for state in options.states:
        if state not in get_args(VmState):
            raise UsageFault(f"--state {state!r}: one of {', '.join(get_args(VmState))}")
    with session.client() as client:
        if options.follow:
            _follow(session, client, options, since)
            return
        if options.name is None and since is None and options.after is None:
            since = datetime.now(UTC) - RECENT
        found = list(_read(client, options, since, options.after))
    if session.output == "json":
        print_json({"items": [as_json(event) for event in found], "next_cursor": None})
    elif session.output == "name":
        for event in found:
            print(event.vm_name)
    else:
        events_table(found, named=options.name is None)


def _read(
    client: Client, options: EventOptions, since: datetime | None, after: int | None
) -> Iterator[VmEvent]:
    return client.events(
        vm=options.name,
        states=[state for state in get_args(VmState) if state in options.states],
        reasons=options.reasons,
        since=since,
        after=after,
        follow=options.follow,
    )


def _follow(
    session: Session, client: Client, options: EventOptions, since: datetime | None
) -> None:
    """Prints events as they come. A VM's begin with what is known of it, all VMs' with now."""
    after = options.after
    if after is None and since is None and options.name is not None:
        after = 0
    if session.output is None or session.output == "table":
        _say(HEADINGS)
    while True:
        try:
            for event in _read(client, options, since, after):
                _tell(session, event)
        except EventsLost as lost:
            print(f"nexus: {lost.message}", file=sys.stderr, flush=True)
            after = lost.gap.to


def _tell(session: Session, event: VmEvent) -> None:
    if session.output == "json" and Form.yaml:
        print("---")
        print_json(as_json(event))
        sys.stdout.flush()
    elif session.output == "json":
        print(json.dumps(as_json(event), ensure_ascii=False), flush=True)
    elif session.output == "name":
        print(event.vm_name, flush=True)
    else:
        _say(_row(event))


def _say(cells: tuple[str, ...]) -> None:
    line = "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
    print(line.rstrip(), flush=True)


def _row(event: VmEvent) -> tuple[str, ...]:
    at = event.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return (at, event.vm_name, event.state, event.reason, event.actor, event.message)


def events_table(found: list[VmEvent], *, named: bool = False) -> None:
    """Events as a table, in the order given; ``named`` with the VM of each."""
    keep = [index for index, heading in enumerate(HEADINGS) if named or heading != "VM"]
    rows = [[_row(event)[index] for index in keep] for event in found]
    table([HEADINGS[index] for index in keep], rows)


def moment(text: str, now: datetime) -> datetime:
    """A time from ``10m`` (that long ago; s, m, h, d) or RFC 3339. Raises UsageFault."""
    span = _SPAN.fullmatch(text)
    try:
        if span is not None:
            return now - timedelta(seconds=int(span[1]) * _SECONDS[span[2]])
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageFault(f"--since {text!r}: write 10m, 2h, 3d or 2026-07-01T12:00:00Z") from None
    return at if at.tzinfo is not None else at.astimezone()
