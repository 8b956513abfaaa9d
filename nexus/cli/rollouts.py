"""What the commands on rollouts do."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from nexus.api.rollouts import (
    Rollout,
    RolloutAction,
    RolloutCounts,
    RolloutCreate,
    RolloutState,
)
from nexus.cli.exits import UsageFault, problems
from nexus.cli.output import ago, as_json, fields, print_json, table
from nexus.cli.session import Session
from nexus.client import Client, NexusApiError

HEADINGS = ("ID", "TEMPLATE", "VERSION", "STATE", "VMS", "AGE")
GOALS: dict[RolloutAction, RolloutState] = {
    "halt": "halted",
    "resume": "done",
    "cancel": "cancelled",
    "rollback": "rolled_back",
}


def _count(counts: RolloutCounts) -> int:
    return sum(count for _, count in counts)


def _told(counts: RolloutCounts) -> str:
    return ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in counts if count)


def _row(rollout: Rollout) -> tuple[str, ...]:
    return (
        rollout.id,
        rollout.template,
        str(rollout.version),
        rollout.state,
        _told(rollout.vms),
        ago(rollout.created_at),
    )


def ls(session: Session, template: str | None, state: str | None) -> None:
    wanted: RolloutState | None = None
    for known in get_args(RolloutState):
        wanted = known if known == state else wanted
    if state is not None and wanted is None:
        raise UsageFault(f"--state {state!r}: one of {', '.join(get_args(RolloutState))}")
    with session.client() as client:
        found = list(client.rollouts.list(template=template, state=wanted))
    if session.output == "json":
        print_json({"items": [as_json(rollout) for rollout in found], "next_cursor": None})
    elif session.output == "name":
        for rollout in found:
            print(rollout.id)
    else:
        table(HEADINGS, [_row(rollout) for rollout in found])


def begin(session: Session, template: str, given: Mapping[str, Any], *, wait: bool) -> None:
    try:
        named = {name: value for name, value in given.items() if value is not None}
        request = RolloutCreate.model_validate(named)
    except ValidationError as error:
        raise UsageFault(problems(error)) from error
    with session.client() as client:
        rollout = client.rollouts.create(template, request)
        if wait:
            rollout = _follow(session, client, rollout)
        _end(session, client, rollout, "done" if wait else None)


def act(session: Session, rollout_id: str, action: RolloutAction, *, wait: bool) -> None:
    with session.client() as client:
        getattr(client.rollouts, action)(rollout_id)
        rollout = client.rollouts.get(rollout_id)
        if wait:
            rollout = _follow(session, client, rollout)
        _end(session, client, rollout, GOALS[action] if wait else None)


def show(session: Session, rollout_id: str) -> None:
    with session.client() as client:
        rollout = client.rollouts.get(rollout_id)
        _print(session, client, rollout)


def _follow(session: Session, client: Client, begun: Rollout) -> Rollout:
    """Shows how far it is. Ctrl-C leaves it going on."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
    )
    quiet = session.output is not None
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bars:
        task = bars.add_task(f"{begun.template} version {begun.version}", total=None, told="")

        def progress(now: Rollout) -> None:
            total, counts = _count(now.vms), now.vms
            over = total - counts.pending - counts.updating
            if now.state == "rolling_back":
                over = counts.reverted + counts.not_reverted + counts.skipped
            bars.update(task, total=total, completed=over, told=f"{now.state}: {_told(counts)}")

        return client.rollouts.wait(begun.id, progress=progress)


def _end(session: Session, client: Client, rollout: Rollout, goal: RolloutState | None) -> None:
    """Prints it. Raises NexusApiError when it did not come to where it was to come."""
    _print(session, client, rollout)
    if goal is None or rollout.state == goal:
        return
    raise NexusApiError(
        409,
        "conflict",
        f"the rollout is {rollout.state}: {rollout.reason or _told(rollout.vms)}",
        suggestion=f"mend it, then: nexus rollout resume {rollout.id}; "
        f"or: nexus rollout rollback {rollout.id}",
    )


def _print(session: Session, client: Client, rollout: Rollout) -> None:
    if session.output == "name":
        print(rollout.id)
        return
    members = list(client.rollouts.vms(rollout.id))
    if session.output == "json":
        print_json({"item": as_json(rollout), "vms": [as_json(member) for member in members]})
        return
    options = rollout.options
    fields(
        [
            ("id", rollout.id),
            ("template", f"{rollout.template} version {rollout.version}"),
            ("state", rollout.state),
            ("reason", rollout.reason),
            (
                "next batch",
                rollout.next_at.isoformat(timespec="seconds") if rollout.next_at else "",
            ),
            ("VMs", _told(rollout.vms)),
            ("at a time", str(options.batch)),
            ("only", ", ".join(f"{key}={value}" for key, value in options.selector.items())),
            (
                "asked for",
                f"{rollout.created_at.isoformat(timespec='seconds')} {rollout.created_by}",
            ),
        ]
    )
    print()
    rows = [
        (
            member.vm_name,
            member.state,
            str(member.former_version) if member.former_version else "-",
            member.message or "",
        )
        for member in members
    ]
    table(("VM", "STATE", "FROM", "MESSAGE"), rows)
