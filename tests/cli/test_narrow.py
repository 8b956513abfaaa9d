"""Tables on real terminals: no line is longer than the terminal is wide."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from nexus.cli.output import cells_of
from tests.cli.calling import command, environment
from tests.client.wire import Wire, make_vm


@pytest.mark.parametrize("columns", [80, 40])
def test_a_table_fits_its_terminal(wire: Wire, columns: int) -> None:
    wire.vms[:] = [make_vm("web"), make_vm("a-name-of-some-length", tags={"team": "blue"})]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    given = {k: v for k, v in environment(wire).items() if k != "COLUMNS"}
    listing = subprocess.Popen(
        command("ls"),
        env=given | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=theirs,
        stdout=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # the last one has hung up
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert listing.wait(60) == 0
    lines = shown.decode().splitlines()
    assert len(lines) == 3
    assert max(map(cells_of, lines)) <= columns, lines
    assert lines[0].split()[:2] == ["NAME", "STATE"]
    assert lines[2].split()[:2] == ["a-name-of-some-length", "running"]
