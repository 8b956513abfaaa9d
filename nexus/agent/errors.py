"""What the agent can fail at, each with a cure."""

import errno
from pathlib import Path

from nexus.api.errors import Conflict, NexusError
from nexus.api.vms import Stage, VmError

LOG_TAIL_LINES = 20


class SettingsInvalid(Exception):
    """The agent must not start like this; the text says what to change."""


class Expired(NexusError):
    """The machine's time was up before it was asked for."""

    code = "gone"
    status = 410


class StaleGeneration(Conflict):
    """The agent holds a newer desired machine than the one it was sent."""


class HostFull(NexusError):
    """There is no room on this host to write down what is wanted; nothing was begun."""

    code = "no_capacity"
    status = 409


class NetworkFailed(NexusError):
    """The host's network could not be set up; ``suggestion`` says what is missing."""


class FetchFailed(Exception):
    """An image could not be fetched from the manager; ``passing`` is what may mend itself."""

    def __init__(self, message: str, *, suggestion: str, passing: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion
        self.passing = passing


class StageFailed(Exception):
    """A step of one machine failed: where, why, and what to do about it."""

    def __init__(
        self,
        stage: Stage,
        message: str,
        *,
        fault_message: str | None = None,
        suggestion: str | None = None,
        log_tail: list[str] | None = None,
    ) -> None:
        super().__init__(message)
        self.error = VmError(
            stage=stage,
            message=message,
            fault_message=fault_message,
            suggestion=suggestion,
            log_tail=log_tail or [],
        )


def host_full(what: str, error: OSError, place: Path) -> NexusError:
    """What the file system refused of something that somebody asked for: nothing of it is left."""
    failed = disk_failure(error, place).error
    return HostFull(f"{what}: {failed.message}", suggestion=failed.suggestion)


def disk_failure(error: OSError, place: Path) -> StageFailed:
    """What the file system refused, and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        cure = f"free space on the host (df -h {place}), or delete VMs (nexus ls), then start again"
    elif error.errno == errno.EROFS:
        cure = f"the file system is read-only: look at the host's kernel log (dmesg) and at {place}"
    else:
        cure = f"check the run directory on the host: ls -la {place}"
    return StageFailed("disk", f"{error.strerror}: {error.filename or place}", suggestion=cure)
