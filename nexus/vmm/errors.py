"""What can go wrong when speaking to a VMM, or finding one."""


class VmmFailure(Exception):
    """Base of all errors of this package; ``suggestion`` says what to do next, if we know."""

    def __init__(self, message: str, *, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


class VmmError(VmmFailure):
    """The VMM answered, and refused. ``fault_message`` is its own text."""

    def __init__(self, status: int, fault_message: str, endpoint: str) -> None:
        super().__init__(f"{endpoint}: {status}: {fault_message}")
        self.status = status
        self.fault_message = fault_message
        self.endpoint = endpoint


class VmmUnreachable(VmmFailure):
    """Nobody answers on the VMM's socket: not started, gone, or it died during the call."""


class VmmImpostor(VmmUnreachable):
    """Another process than the VMM serves its socket: a jailed VMM may have put a link there."""


class VmmTimeout(VmmFailure):
    """The VMM did not answer in time; whether it acts on the request is not known."""


class BinaryMissing(VmmFailure):
    """A program that is needed is not installed where we looked."""


class BinaryBroken(VmmFailure):
    """A program is there but does not answer ``--version`` as it should."""


class EngineUnavailable(VmmFailure):
    """The wanted engine cannot run guests on this machine."""
