"""Leaving stdin and stdout as they were found: QEMU makes a terminal raw and both non-blocking."""

import fcntl
import os
import termios


class Terminal:
    """Remembers the modes of stdin and stdout."""

    def __init__(self) -> None:
        self._modes = termios.tcgetattr(0) if os.isatty(0) else None
        self._flags = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (0, 1) if os.isatty(fd)}

    def restore(self) -> None:
        """Puts them back; nothing happens to what is no terminal."""
        for fd, flags in self._flags.items():
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        if self._modes is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._modes)
