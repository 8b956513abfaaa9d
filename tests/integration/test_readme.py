"""The README, done in a fresh clone: its two commands, and every command of its tour."""

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.installation import machine_state
from tests.parts import CACHE

pytestmark = [pytest.mark.alone, pytest.mark.root, pytest.mark.qemu]

UP_TIMEOUT_S = 120
COMMAND_TIMEOUT_S = 60
LAST_WORDS = "Ctrl-C stops the services"


def commands_of(page: Path) -> list[str]:
    """The commands of a page's ``console`` blocks, in order; continued lines are joined."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.fixture
def clone(tmp_path: Path, repo: Path, on_host_network: list[str]) -> Path:
    """A fresh clone of what is committed, with its set-up done."""
    folder = tmp_path / "nexus"
    subprocess.run(["git", "clone", "-q", str(repo), str(folder)], check=True)
    subprocess.run([*on_host_network, "make", "-s", "setup"], cwd=folder, check=True)
    return folder


def environment() -> dict[str, str]:
    """A newcomer's environment; packages already fetched are taken from the test cache."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NEXUS_", "MANAGER_", "FC_"))}
    return {**clean, "NEXUS_CACHE_DIR": str(CACHE / "packages")}


def lines_until(process: subprocess.Popen[bytes], words: str, timeout_s: float) -> list[str]:
    """The process' output up to the line that holds ``words``."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    deadline = time.monotonic() + timeout_s
    text = ""
    while words not in text:
        readable, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
        chunk = os.read(pipe, 65536) if readable else b""
        assert chunk, f"no {words!r} within {timeout_s} s:\n{text}"
        text += chunk.decode(errors="replace")
    return text.splitlines()


def make_up(clone: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["make", "-s", "up"],
        cwd=clone,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def press_ctrl_c(process: subprocess.Popen[bytes]) -> None:
    """SIGINT to the foreground process group, as a terminal does it."""
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=40)


def in_terminal(command: str, folder: Path, talk: list[tuple[bytes, bytes]]) -> None:
    """Runs an interactive command in a terminal; types each answer once its prompt is seen."""
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(folder)
        arguments = shlex.split(command)
        os.execvpe(arguments[0], arguments, environment())  # noqa: S606 - no shell is the point
    seen = b""
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    try:
        for prompt, answer in talk:
            while prompt not in seen:
                left_s = max(0, deadline - time.monotonic())
                assert select.select([screen], [], [], left_s)[0], (prompt, seen)
                seen += os.read(screen, 4096)
            seen = b""
            os.write(screen, answer)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(screen)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.fixture
def running(clone: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    process = make_up(clone)
    try:
        output = lines_until(process, LAST_WORDS, UP_TIMEOUT_S)
        assert any("nexus-guest ready hostname=hello" in line for line in output), output
        yield clone, process
    finally:
        if process.poll() is None:
            press_ctrl_c(process)
        subprocess.run(["make", "-s", "down"], cwd=clone, env=environment(), check=False)


def test_every_command_of_the_readme(
    running: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    clone, process = running
    commands = commands_of(clone / "README.md")
    assert commands[:2] == ["make up", ".venv/bin/nexus ls"]
    for command in commands[1:]:
        if command in ("make up", "make down", "make test", "make bench"):
            continue  # the fixture does the first two; CI is the third
        if " console " in command:
            in_terminal(command, clone, [(b"web:/#", b"uname -a\n"), (b"Linux web", b"\x1d")])
            continue
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=clone,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    press_ctrl_c(process)
    again = make_up(clone)
    output = lines_until(again, LAST_WORDS, UP_TIMEOUT_S)
    assert any("VM hello is running" in line for line in output), output
    press_ctrl_c(again)
    subprocess.run(["make", "-s", "down"], cwd=clone, env=environment(), check=True)
    assert not (clone / "data").exists()


def test_make_down_leaves_the_machine_as_it_was(clone: Path) -> None:
    before = machine_state(clone / "data")
    process = make_up(clone)
    lines_until(process, LAST_WORDS, UP_TIMEOUT_S)
    # Down ends a running installation as well: nobody has to press Ctrl-C first.
    subprocess.run(["make", "-s", "down"], cwd=clone, env=environment(), check=True)
    process.communicate(timeout=40)
    assert machine_state(clone / "data") == before
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert status.stdout == ""
