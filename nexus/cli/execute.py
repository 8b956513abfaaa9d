"""``nexus exec``: a program in a guest, on this terminal or between pipes."""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from nexus.cli.exits import UsageFault, exit_code_of, problems
from nexus.cli.session import Session
from nexus.cli.terminal import raw_terminal
from nexus.client import NexusApiError

if TYPE_CHECKING:
    from nexus.client.process import Process

SHELL = ["sh", "-l"]
NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""What a shell answers for a program that is not there, or that may not be run."""


@dataclass(frozen=True)
class Options:
    argv: list[str]
    tty: bool | None
    stdin: bool
    user: str | None
    cwd: str | None
    env: list[str]


def run(session: Session, name: str, options: Options) -> NoReturn:
    """Runs the program and exits as it did; exits as ``exits`` says when it could not be run."""
    tty = options.tty
    if tty is None:
        tty = options.stdin and _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    env = dict(_variable(text) for text in options.env)
    if tty:
        env.setdefault("TERM", os.environ.get("TERM", "xterm"))
    rows, cols = _size()
    with session.client() as client:
        try:
            opening = client.vms.process(
                name,
                options.argv or SHELL,
                env=env,
                cwd=options.cwd,
                user=options.user,
                tty=tty,
                rows=rows,
                cols=cols,
            )
        except ValueError as error:
            raise UsageFault(problems(error)) from error
        keyboard = sys.stdin.fileno() if options.stdin and sys.stdin is not None else None
        try:
            with opening as process, _own_terminal(tty):
                code = Relay(process, keyboard, tty=tty).run()
        except NexusApiError as error:
            code = _code_of(error)
    sys.exit(code)


class Relay:
    """Carries bytes both ways: input in the calling thread, output in one of its own."""

    def __init__(self, process: "Process", keyboard: int | None, *, tty: bool) -> None:
        self._process = process
        self._keyboard = keyboard
        self._tty = tty
        self._failure: NexusApiError | OSError | None = None

    def run(self) -> int:
        """Returns the program's exit code. Raises NexusApiError, or OSError of our own output."""
        noticed, notice = os.pipe()
        reader = threading.Thread(target=self._show, args=(notice,), daemon=True)
        try:
            with _resizes(notice, watched=self._tty):
                reader.start()
                self._type(noticed)
        finally:
            self._process.close()
            reader.join()
            os.close(noticed)
            os.close(notice)
        if self._failure is not None:
            raise self._failure
        return self._process.exit_code or 0

    def _type(self, noticed: int) -> None:
        waiting = [noticed]
        if self._keyboard is None:
            self._process.end_input()
        else:
            waiting.append(self._keyboard)
        while True:
            ready, _, _ = select.select(waiting, [], [])
            if noticed in ready:
                notices = os.read(noticed, 64)
                if _ENDED in notices:
                    return
                self._process.resize(*_size())
            if self._keyboard not in ready or self._keyboard is None:
                continue
            data = os.read(self._keyboard, 65536)
            if data:
                self._process.send(data)
            else:
                waiting.remove(self._keyboard)
                self._process.end_input()

    def _show(self, notice: int) -> None:
        try:
            for output in self._process:
                stream = sys.stderr if output.stream == "stderr" else sys.stdout
                stream.buffer.write(output.data)
                stream.buffer.flush()
        except (NexusApiError, OSError) as error:
            self._failure = error
        finally:
            os.write(notice, _ENDED)


_ENDED, _RESIZED = b"e", b"w"


@contextmanager
def _resizes(notice: int, *, watched: bool) -> Iterator[None]:
    """Has changes of the terminal's size noticed inside the block."""
    if not watched:
        yield
        return

    def resized(number: int, frame: object) -> None:
        os.write(notice, _RESIZED)

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


@contextmanager
def _own_terminal(tty: bool) -> Iterator[None]:
    """The guest's terminal does what this one would do else: echo, line editing, signals."""
    if not tty:
        yield
        return
    with raw_terminal():
        yield


def _size() -> tuple[int, int]:
    """Rows and columns of the terminal this runs on."""
    for stream in (sys.stdout, sys.stdin, sys.stderr):
        try:
            size = os.get_terminal_size(stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
        if size.lines and size.columns:
            return size.lines, size.columns
    return 24, 80


def _is_terminal(stream: object) -> bool:
    return stream is not None and bool(getattr(stream, "isatty", bool)())


def _variable(text: str) -> tuple[str, str]:
    """``NAME=VALUE``, or ``NAME`` with the value it has here."""
    name, equals, value = text.partition("=")
    if equals:
        return name, value
    if name not in os.environ:
        raise UsageFault(f"--env {text!r}: write NAME=VALUE; no variable {name!r} is set here")
    return name, os.environ[name]


def _code_of(error: NexusApiError) -> int:
    """Says what went wrong; a program that is not there has a shell's code."""
    code = exit_code_of(error) or 1
    if error.code == "guest_fault":
        errno = (error.fault_message or "").partition(":")[0]
        return {"ENOENT": NOT_FOUND, "EACCES": NOT_EXECUTABLE}.get(errno, code)
    return code
