"""What the commands that act on several VMs do: one request for all of them."""

import sys
from collections.abc import Callable, Sequence

from nexus.api.bulk import BulkAction, BulkError, BulkRefused
from nexus.api.vms import WaitState
from nexus.cli.exits import UsageFault, exit_code_of
from nexus.cli.output import as_json, print_done, print_json
from nexus.cli.session import Session
from nexus.cli.terms import tags_of
from nexus.client import Client, NexusApiError
from nexus.client.calls.bulk import Answers

_GOALS: dict[BulkAction, WaitState] = {
    "start": "running",
    "stop": "stopped",
    "pause": "paused",
    "resume": "running",
    "reboot": "running",
    "delete": "deleted",
}


def act(
    session: Session,
    action: BulkAction,
    names: Sequence[str],
    tags: Sequence[str],
    *,
    force: bool = False,
    grace_s: float | None = None,
    timeout_s: float | None = None,
) -> None:
    """Does it to the VMs named or tagged so and waits; the worst exit code wins."""
    refs, selector = _chosen(names, tags)
    with session.client() as client:
        answers = client.vms.act(
            action,
            refs,
            tags=selector,
            force=force,
            grace_s=grace_s,
            wait=_GOALS[action],
            timeout_s=timeout_s,
        )
    _tell(session, answers)


def remove(
    session: Session,
    names: Sequence[str],
    tags: Sequence[str],
    *,
    force: bool,
    timeout_s: float,
) -> None:
    """Deletes VMs; without ``force`` those that run are refused."""
    if force:
        act(session, "delete", names, tags, timeout_s=timeout_s)
        return
    refs, selector = _chosen(names, tags)
    refused: Answers = []
    with session.client() as client:
        if selector is not None:
            found = [vm.name for vm in client.vms.list(tags=tags)]
        else:
            found = list(refs or [])
        idle = []
        for name in found:
            problem = _not_idle(client, name)
            if problem is None:
                idle.append(name)
            else:
                refused.append(problem)
        answers = (
            client.vms.act("delete", idle, wait="deleted", timeout_s=timeout_s) if idle else []
        )
    _tell(session, [*answers, *refused])


def _not_idle(client: Client, name: str) -> BulkRefused | None:
    try:
        state = client.vms.get(name).state
    except NexusApiError as error:
        if error.status != 404:
            raise
        problem = BulkError(code="not_found", message=error.message, suggestion=error.suggestion)
        return BulkRefused(id=name, error=problem)
    if state not in ("running", "paused"):
        return None
    problem = BulkError(
        code="invalid_state",
        message=f"{name} is {state}",
        suggestion=f"nexus rm -f {name}, or nexus stop {name} first",
    )
    return BulkRefused(id=name, name=name, error=problem)


def _chosen(
    names: Sequence[str], tags: Sequence[str]
) -> tuple[list[str] | None, dict[str, str] | None]:
    if bool(names) == bool(tags):
        raise UsageFault("name VMs, or choose them with --tag key=value")
    return (list(names), None) if names else (None, tags_of(tags))


def _tell(session: Session, answers: Answers) -> None:
    code = 0
    if session.output == "json":
        print_json({"items": [as_json(answer) for answer in answers]})
    for answer in answers:
        if isinstance(answer, BulkRefused):
            code = max(code, exit_code_of(_error(answer)) or 1)
        elif session.output != "json":
            print(answer.name, flush=True)
    if code:
        sys.exit(code)


def _error(answer: BulkRefused) -> NexusApiError:
    from nexus.client.errors import error_for

    error = answer.error
    return error_for(
        error.code, error.message, suggestion=error.suggestion, fault_message=error.fault_message
    )


def each(session: Session, names: list[str], one: Callable[[Client, str], None]) -> None:
    """Does it for every name; a failure does not keep the others from it. The worst code wins."""
    code = 0
    done: list[str] = []
    with session.client() as client:
        for name in names:
            try:
                one(client, name)
            except NexusApiError as error:
                code = max(code, exit_code_of(error) or 1)
            else:
                done.append(name)
                if session.output != "json":
                    print(name, flush=True)
    if session.output == "json":
        print_done(done)
    if code:
        sys.exit(code)
