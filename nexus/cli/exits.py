"""Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 timed out."""

import sys


class UsageFault(Exception):
    """The command line itself is wrong in a way that the option parser cannot see."""


def problems(error: ValueError) -> str:
    """What is wrong with values, each with its place, in one line."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors()
    )


def exit_code_of(error: Exception) -> int | None:
    """Prints an expected error on stderr and returns its exit code; None for anything else."""
    from nexus.client import DeniedError, NexusApiError, NotFoundError, WaitTimedOut

    if isinstance(error, UsageFault):
        print(f"nexus: {error}", file=sys.stderr)
        return 2
    if not isinstance(error, NexusApiError):
        return None
    print(f"nexus: {error.message}", file=sys.stderr)
    if error.fault_message:
        who = "guest" if error.code in ("guest_fault", "not_found") else "VMM"
        print(f"the {who} says: {error.fault_message}", file=sys.stderr)
    if error.request_id and error.status >= 500:
        print(f"request id: {error.request_id}", file=sys.stderr)
    if error.suggestion:
        print(f"try: {error.suggestion}", file=sys.stderr)
    if isinstance(error, NotFoundError):
        return 3
    if isinstance(error, DeniedError):
        return 4
    return 5 if isinstance(error, WaitTimedOut) else 1
