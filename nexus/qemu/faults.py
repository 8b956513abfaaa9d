"""What a request is refused with: a 400 whose ``fault_message`` reads as Firecracker's does."""

AFTER_BOOT = "The requested operation is not supported after starting the microVM."
BEFORE_BOOT = "The requested operation is not supported before starting the microVM."


class Fault(Exception):
    """A request that cannot be done; the text becomes the answer's ``fault_message``.

    A fatal fault leaves nothing to go on with (a snapshot half loaded): the VMM answers and exits.
    """

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.fatal = fatal


def os_error(error: OSError) -> str:
    """An operating system error in the words of Rust's ``io::Error``."""
    return f"{error.strerror} (os error {error.errno})"
