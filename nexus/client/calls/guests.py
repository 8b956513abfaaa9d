"""The calls that reach into guests."""

from nexus.api.common import Item, Page
from nexus.api.guest import ExecRequest, ExecResult, GuestEntry, GuestFile, GuestInfo, Written
from nexus.client.calls.call import WAIT_GRACE_S, Call, item, nothing, one


def guest(ref: str) -> Call[GuestInfo]:
    return Call("GET", one("/v1/vms", ref, "guest"), item(Item[GuestInfo]))


def run_program(ref: str, request: ExecRequest) -> Call[ExecResult]:
    return Call(
        "POST",
        one("/v1/vms", ref, "exec"),
        item(Item[ExecResult]),
        body=request,
        timeout_s=request.timeout_s + WAIT_GRACE_S,
        # A manager that died meanwhile cannot tell whether the program ran to its end.
        probe=True,
    )


def exec_path(ref: str) -> str:
    """The WebSocket of a program in a guest."""
    return one("/v1/vms", ref, "exec")


def put_file(ref: str, path: str, mode: int) -> Call[Written]:
    """The content goes beside it."""
    query = {"path": path, "mode": f"{mode:04o}"}
    return Call("PUT", one("/v1/vms", ref, "files"), item(Item[Written]), query)


def get_file(ref: str, path: str) -> Call[None]:
    return Call("GET", one("/v1/vms", ref, "files"), nothing, {"path": path})


def stat_file(ref: str, path: str) -> Call[GuestFile]:
    return Call("GET", one("/v1/vms", ref, "files", "stat"), item(Item[GuestFile]), {"path": path})


def list_files(ref: str, path: str) -> Call[Page[GuestEntry]]:
    read = Page[GuestEntry].model_validate_json
    return Call("GET", one("/v1/vms", ref, "files", "list"), read, {"path": path})


def make_directory(ref: str, path: str, mode: int) -> Call[None]:
    query = {"path": path, "mode": f"{mode:04o}"}
    return Call("POST", one("/v1/vms", ref, "files", "mkdir"), nothing, query)
