"""What the agent can fail at, each with a cure."""

from nexus.api.errors import Conflict, NexusError
from nexus.api.vms import Stage, VmError

LOG_TAIL_LINES = 20


class SettingsInvalid(Exception):
    """The agent must not start like this; the text says what to change."""


class StaleGeneration(Conflict):
    """The agent holds a newer desired machine than the one it was sent."""


class NetworkFailed(NexusError):
    """The host's network could not be set up; ``suggestion`` says what is missing."""


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
