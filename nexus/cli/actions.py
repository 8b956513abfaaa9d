"""What the commands that act on several VMs do."""

import sys
from collections.abc import Callable
from typing import Literal

from nexus.cli.exits import exit_code_of
from nexus.cli.output import print_done
from nexus.cli.session import Session
from nexus.client import Client, NexusApiError

Action = Literal["start", "pause", "resume"]


def act(session: Session, action: Action, names: list[str], timeout_s: float) -> None:
    def one(client: Client, name: str) -> None:
        match action:
            case "start":
                client.vms.start(name, wait="running", timeout_s=timeout_s)
            case "pause":
                client.vms.pause(name, wait="paused", timeout_s=timeout_s)
            case "resume":
                client.vms.resume(name, wait="running", timeout_s=timeout_s)

    each(session, names, one)


def stop(session: Session, names: list[str], *, force: bool, grace_s: float) -> None:
    each(
        session,
        names,
        lambda client, name: client.vms.stop(name, force=force, grace_s=grace_s, wait="stopped"),
    )


def remove(session: Session, names: list[str], *, force: bool, timeout_s: float) -> None:
    def one(client: Client, name: str) -> None:
        if not force and (state := client.vms.get(name).state) in ("running", "paused"):
            raise NexusApiError(
                409,
                "invalid_state",
                f"{name} is {state}",
                suggestion=f"nexus rm -f {name}, or nexus stop {name} first",
            )
        client.vms.delete(name, timeout_s=timeout_s)

    each(session, names, one)


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
