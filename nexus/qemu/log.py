"""The VMM's log, line for line in Firecracker's format.

``2026-01-31T12:00:00.123456789 [id:thread:LEVEL:file:line] text``; level and origin only when
asked for. Lines go to stdout until a path is given, as with Firecracker.
"""

import os
import sys
import time

from nexus.qemu.faults import Fault, os_error

_LEVELS = {"off": 0, "error": 1, "warning": 2, "warn": 2, "info": 3, "debug": 4, "trace": 5}
_NAMES = {1: "ERROR", 2: "WARN", 3: "INFO", 4: "DEBUG", 5: "TRACE"}


def is_level(name: str) -> bool:
    """Whether this is the name of a level, in any case."""
    return name.lower() in _LEVELS


def open_target(path: str) -> int:
    """Opens an existing file or FIFO for appending lines without ever blocking; raises OSError."""
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)


class Log:
    """Writes lines; what cannot be written at once is dropped and counted in ``missed``."""

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        self.missed = 0
        self._fd = 1
        self._level = _LEVELS["info"]
        self._show_level = False
        self._show_origin = False

    def configure(
        self,
        *,
        path: str | None = None,
        level: str | None = None,
        show_level: bool | None = None,
        show_origin: bool | None = None,
    ) -> None:
        """Changes what is given; raises Fault when the target cannot be opened."""
        if path is not None:
            try:
                fd = open_target(path)
            except OSError as error:
                raise Fault(f"Failed to open target file: {os_error(error)}") from error
            if self._fd != 1:
                os.close(self._fd)
            self._fd = fd
        if level is not None:
            self._level = _LEVELS[level.lower()]
        if show_level is not None:
            self._show_level = show_level
        if show_origin is not None:
            self._show_origin = show_origin

    def error(self, text: str, thread: str = "main") -> None:
        self._line(1, thread, text)

    def warning(self, text: str, thread: str = "main") -> None:
        self._line(2, thread, text)

    def info(self, text: str, thread: str = "main") -> None:
        self._line(3, thread, text)

    def debug(self, text: str, thread: str = "main") -> None:
        self._line(4, thread, text)

    def _line(self, level: int, thread: str, text: str) -> None:
        if level > self._level:
            return
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now // 1_000_000_000))
        head = f"{self.instance_id}:{thread}"
        if self._show_level:
            head += f":{_NAMES[level]}"
        if self._show_origin:
            frame = sys._getframe(2)
            head += f":nexus/qemu/{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"  # noqa: PTH119 - a name, not a path to open
        line = f"{stamp}.{now % 1_000_000_000:09d} [{head}] {text}\n"
        try:
            os.write(self._fd, line.encode("utf-8", "replace"))
        except OSError:
            self.missed += 1
