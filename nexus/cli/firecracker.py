"""What ``nexus firecracker`` does."""

import json

from nexus.cli.exits import UsageFault
from nexus.cli.output import print_json
from nexus.cli.session import Session


def ask(session: Session, name: str, method: str, path: str, body: str | None) -> None:
    try:
        given = None if body is None else json.loads(body)
    except ValueError as error:
        raise UsageFault(f"the body is not JSON: {error}") from error
    with session.client() as client:
        answer = client.vms.firecracker(name, method, path, given)
    if answer is not None:
        print_json(answer)
