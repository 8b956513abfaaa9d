"""``nexus console``: the serial console of a VM in this terminal."""

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from nexus.cli.session import Session
from nexus.client import ConflictError, NexusApiError
from nexus.client.console import Console

LEAVE = b"\x1d"
"""Ctrl-]"""
QUIET_S = 2.0
"""Input from a pipe or file that has ended: leave when the guest says no more for so long."""


def attach(session: Session, name: str) -> None:
    """Relays keys and output until Ctrl-], or the end of the console.

    When stdin is no terminal, its end is followed by what the guest still says, until it is quiet.
    Raises NexusApiError.
    """
    with session.client() as client:
        vm = client.vms.get(name)
        if vm.state not in ("running", "paused"):
            raise ConflictError(
                409,
                "invalid_state",
                f"{vm.name} is {vm.state}: it has no console",
                suggestion=f"nexus start {vm.name}, or nexus logs {vm.name}",
            )
        with client.vms.console(vm.id) as console:
            if sys.stdin.isatty():
                _say(f"console of {vm.name}; Ctrl-] leaves\n")
            with raw_terminal():
                broken = Relay(console).run()
    if sys.stdin.isatty():
        _say("\n")
    if broken is not None:
        raise broken


class Relay:
    """Carries bytes both ways: keys in the calling thread, output in one of its own."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._broken: NexusApiError | None = None
        self._said_at = time.monotonic()

    def run(self) -> NexusApiError | None:
        """Returns when either side ends, with the error if the connection broke."""
        ended, end = os.pipe()
        reader = threading.Thread(target=self._show, args=(end,), daemon=True)
        reader.start()
        try:
            self._type(ended)
        except NexusApiError:
            # The reader sees the same break, with the reason the other side gave.
            reader.join()
        finally:
            left = reader.is_alive()
            self._console.close()
            reader.join()
            os.close(ended)
            os.close(end)
        return None if left else self._broken

    def _type(self, ended: int) -> None:
        keyboard = sys.stdin.fileno()
        waiting = [keyboard, ended]
        while True:
            pause_s = None if keyboard in waiting else self._said_at + QUIET_S - time.monotonic()
            if pause_s is not None and pause_s <= 0:
                return
            ready, _, _ = select.select(waiting, [], [], pause_s)
            if ended in ready:
                return
            if keyboard not in ready:
                continue
            keys = os.read(keyboard, 4096)
            before, leave, _ = keys.partition(LEAVE)
            if before:
                self._console.send(before)
            if leave:
                return
            if not keys:
                waiting.remove(keyboard)
                self._said_at = time.monotonic()

    def _show(self, end: int) -> None:
        try:
            for chunk in self._console:
                self._said_at = time.monotonic()
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
        except NexusApiError as error:
            self._broken = error
        finally:
            os.write(end, b"x")


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Keys go to the guest as they are pressed; the terminal is restored however this ends."""
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def leave(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        # What was typed ahead stays.
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
