"""What every command's exit code says of every kind of failure.

The commands run in this process: hundreds of them would else be mostly the interpreter's start.
"""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer

from nexus.__main__ import app
from nexus.cli.app import run
from tests.client.wire import TOKEN, Wire

COMMANDS = """
balloon web 64M
drive grow web data 20G
drive limit web data --iops 5
events web
firecracker web GET /vm
forward add web 8080:80
forward ls web
forward rm web 8080
host ls
image add kernel mine mine
image build busybox
image ls
image rm mine
image show mine
image upload FILE mine
logs web
ls
network create lab
network doctor web
network ls
network rm lab
network set lab --dns 9.9.9.9
network show lab
nic limit web eth0 --rx 5
pause web
ps
quota set default --vms 5
quota show default
reboot web
rename web new
restart web
resume web
rm -f web
rollout cancel web
rollout halt web
rollout ls
rollout resume web
rollout rollback web
rollout show web
run busybox --name web
set web --ttl 2h
show web
snapshot clone base --name web
snapshot create web base
snapshot export base FILE.new
snapshot import FILE
snapshot ls
snapshot rename base new
snapshot restore web base
snapshot rm base
snapshot show base
snapshot unschedule web
start web
stop web
tag web a=b
template create worker
template diff worker
template edit worker
template ls
template rm worker
template run worker
template show worker
template update worker --mem 64M
template versions worker
usage
volume attach data web
volume create data --size 1G
volume detach data
volume grow data 1G
volume ls
volume rename data new
volume rm data
volume show data
volume snapshot data new
why web
"""
LINES = COMMANDS.strip().splitlines()

COMMAND: Any = typer.main.get_command(app)
"""Made once: that takes longer than most commands."""
ELSEWHERE = {
    *("agent", "manager", "up", "down", "host init"),  # not of a manager
    *("console", "cp", "exec"),  # over a WebSocket: test_console.py, test_guests.py
    *("snapshot schedule", "template rollout"),  # of several requests
}
CODES = {403: 4, 404: 3, 409: 1, 504: 5}


def names(command: Any, path: str = "") -> Iterator[str]:
    """The words of every command below a group of them."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path.strip()
    for name, inner in (below or {}).items():
        yield from names(inner, f"{path} {name}")


def test_every_command_has_its_turn() -> None:
    every = set(names(COMMAND))
    said = {name for name in every for line in LINES if f"{line} ".startswith(f"{name} ")}
    assert every - said == ELSEWHERE


@pytest.fixture
def wire_in_environment(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Wire:
    monkeypatch.setenv("NEXUS_URL", wire.url)
    monkeypatch.setenv("NEXUS_TOKEN", TOKEN)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    Path("FILE").write_bytes(b"content")
    return wire


def code_of(line: str) -> tuple[int, str]:
    """The exit code of a command, and what it says on stderr."""
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()) as said,
    ):
        patch.setattr(sys, "argv", ["nexus", *line.split()])
        try:
            run(COMMAND)
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    return 0, said.getvalue()


@pytest.mark.parametrize("line", LINES)
def test_what_the_exit_code_says(wire_in_environment: Wire, line: str) -> None:
    wire = wire_in_environment
    for status, code in CODES.items():
        wire.failures[:] = [status] * 20
        found, said = code_of(line)
        assert (found, bool(said)) == (code, True), (status, said)
    wire.failures.clear()
    assert code_of(f"{line} --no-such-option")[0] == 2


def test_no_manager(monkeypatch: pytest.MonkeyPatch, wire_in_environment: Wire) -> None:
    monkeypatch.setenv("NEXUS_URL", "http://127.0.0.1:9")
    assert code_of("ls")[0] == 1
