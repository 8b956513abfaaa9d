"""What ``nexus logs`` does."""

from nexus.api.vms import LogSource
from nexus.cli.output import as_json, print_json, show_bytes
from nexus.cli.session import Session


def logs(session: Session, name: str, source: LogSource, *, follow: bool, tail: int) -> None:
    with session.client() as client:
        if follow:
            for chunk in client.vms.follow_logs(name, source=source, tail=tail):
                show_bytes(chunk)
            return
        chunk_of_lines = client.vms.logs(name, source=source, tail=tail)
    if session.output == "json":
        print_json({"item": as_json(chunk_of_lines)})
        return
    for line in chunk_of_lines.lines:
        show_bytes(f"{line}\n".encode())
