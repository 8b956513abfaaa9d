"""``nexus console`` on a real pseudo-terminal, and with its input from a pipe."""

import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.calling import call, command, environment
from tests.client.wire import Wire, make_vm

TIMEOUT_S = 30.0


class Terminal:
    """A pseudo-terminal with ``nexus console`` on it."""

    def __init__(self, wire: Wire, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=environment(wire) | {"PYTHONPATH": str(Path(__file__).parents[2])},
            start_new_session=True,
        )

    def until(self, words: bytes) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while words not in self.seen:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"{words!r} never came; seen: {self.seen!r}"
            self.seen += os.read(self.master, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def ended(self) -> int:
        return self.process.wait(TIMEOUT_S)

    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(wire: Wire) -> Iterator[Terminal]:
    made = Terminal(wire, "console", "web")
    made.until(b"hello from the guest")
    yield made
    made.close()


def test_keys_reach_the_guest_as_they_are_and_ctrl_bracket_leaves(terminal: Terminal) -> None:
    assert not terminal.restored()
    terminal.type(b"\x03")
    terminal.until(b"<\x03>")
    terminal.type(b"l\x1dnever sent")
    assert terminal.ended() == 0
    assert terminal.restored()
    assert b"never" not in terminal.seen


def test_the_terminal_is_restored_when_the_guest_ends_it(terminal: Terminal) -> None:
    terminal.type(b"bye")
    assert terminal.ended() == 0
    assert terminal.restored()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_the_command_is_ended(
    terminal: Terminal, number: signal.Signals
) -> None:
    terminal.process.send_signal(number)
    assert terminal.ended() == 130
    assert terminal.restored()


def test_piped_input_is_typed_and_its_answer_shown(wire: Wire) -> None:
    ended = call(wire, "console", "web", stdin=b"uptime\n")
    assert ended.returncode == 0
    assert ended.stdout == b"hello from the guest\r\n<uptime\n>"


def test_a_stopped_vm_has_no_console(wire: Wire) -> None:
    wire.vms = [make_vm("web", state="stopped")]
    ended = call(wire, "console", "web")
    assert ended.returncode == 1
    assert b"web is stopped" in ended.stderr
    assert b"try: nexus start web" in ended.stderr


def test_a_console_of_nobody_is_not_found(wire: Wire) -> None:
    assert call(wire, "console", "nobody").returncode == 3


def test_control_sequences_of_a_guest_do_not_reach_a_terminal(wire: Wire) -> None:
    shown = Terminal(wire, "logs", "web")
    shown.until(b"three")
    shown.close()
    assert shown.seen == b"one\r\ntwo\r\nthree\r\n"
