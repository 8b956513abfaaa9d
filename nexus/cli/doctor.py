"""What ``nexus network doctor`` prints."""

from nexus.api.doctor import Check, Outcome
from nexus.cli.output import as_json, print_json, table
from nexus.cli.session import Session

MARKS: dict[Outcome, str] = {"ok": "ok", "bad": "BAD", "unknown": "?"}


def doctor(session: Session, name: str) -> int:
    """Returns the exit code: 1 when something is wrong."""
    with session.client() as client:
        found = client.networks.doctor(name)
    if session.output == "json":
        print_json({"item": as_json(found)})
    elif session.output == "name":
        print(found.name)
    else:
        table(("", "STEP", "NIC", "WHAT"), [_row(check) for check in found.checks])
        _cures([check for check in found.checks if check.outcome == "bad"])
    return 0 if found.healthy else 1


def _row(check: Check) -> tuple[str, ...]:
    return (MARKS[check.outcome], check.step, check.iface or "-", check.message)


def _cures(bad: list[Check]) -> None:
    if not bad:
        return
    print("\ntry:")
    for suggestion in dict.fromkeys(check.suggestion for check in bad if check.suggestion):
        print(f"  {suggestion}")
