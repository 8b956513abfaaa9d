"""``nexus exec`` and ``nexus cp`` as a user runs them, down to real processes and files."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.calling import command
from tests.guest_stack import STOPPED, VM, Stack
from tests.parts import REPO

TIMEOUT_S = 60.0


def environment(stack: Stack) -> dict[str, str]:
    return {
        "NEXUS_URL": stack.url,
        "NEXUS_TOKEN": stack.token,
        "PATH": "/usr/bin:/bin",
        "TERM": "vt100",
        "PYTHONPATH": str(REPO),
    }


def call(
    stack: Stack, *arguments: str, stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        env=environment(stack),
        cwd=cwd,
        timeout=TIMEOUT_S,
        check=False,
    )


def done(stack: Stack, *arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
    ended = call(stack, *arguments, stdin=stdin, cwd=cwd)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


def wait_until_idle(stack: Stack) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while stack.guest.pids or stack.guest.connections:
        assert time.monotonic() < deadline, "something is left in the guest"
        time.sleep(0.01)


@pytest.fixture
def folder(guest_stack: Stack, request: pytest.FixtureRequest) -> str:
    """A directory of the guest for one test."""
    name = "/" + "".join(letter for letter in request.node.name if letter.isalnum())
    (guest_stack.root / name[1:]).mkdir()
    return name


# -- exec ------------------------------------------------------------------------------------------


def test_output_errors_and_exit_code_are_the_programs(guest_stack: Stack) -> None:
    script = "cat; echo err >&2; exit 42"
    ended = call(guest_stack, "exec", VM, "--", "sh", "-c", script, stdin=b"in\n")
    assert (ended.returncode, ended.stdout, ended.stderr) == (42, b"in\n", b"err\n")


def test_options_stand_before_the_name(guest_stack: Stack) -> None:
    (guest_stack.root / "here").mkdir(exist_ok=True)
    options = ["--env", "A=b=c", "-e", "TERM", "--cwd", "/here"]
    said = done(guest_stack, "exec", *options, VM, "sh", "-c", 'echo "$A $TERM"; pwd', "-n")
    assert said.split() == [b"b=c", b"vt100", str(guest_stack.root / "here").encode()]
    assert done(guest_stack, "exec", "-n", VM, "cat", stdin=b"not read") == b""


def test_much_data_goes_through_a_pipe_both_ways(guest_stack: Stack) -> None:
    data = bytes(range(256)) * 40_000
    assert done(guest_stack, "exec", VM, "--", "cat", stdin=data) == data


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["exec", VM, "--", "no-such-program"], 127, "the guest says: ENOENT"),
        (["exec", VM, "--", "/"], 126, "the guest says: EACCES"),
        (["exec", "nobody", "--", "true"], 3, "try: nexus ls"),
        (["exec", STOPPED, "--", "true"], 1, f"try: nexus start {STOPPED}"),
        (["exec", "--env", "NOT_SET_HERE", VM, "true"], 2, "NAME=VALUE"),
        (["exec", "--env", "1=2", VM, "true"], 2, "env"),
        (["exec", "--cwd", "relative", VM, "true"], 2, "cwd"),
        (["exec"], 2, ""),
        (["cp", "x"], 2, ""),
        (["cp", "a", "b"], 2, "NAME:/path"),
        (["cp", f"{VM}:relative", "."], 2, "begins with /"),
        (["cp", f"{VM}:/a", "other:/b"], 2, "nexus cp web:/a - | nexus cp - other:/b"),
        (["cp", "/nowhere", f"{VM}:/x"], 2, "cannot be read"),
        (["cp", "/usr", f"{VM}:/x"], 2, "cp -r"),
        (["cp", f"{VM}:/", "x"], 2, "cp -r"),
        (["cp", f"{VM}:/none", "."], 3, "/none"),
        (["cp", "nobody:/none", "."], 3, "try: nexus ls"),
        (["cp", "-", f"{VM}:/"], 2, "is a directory"),
    ],
)
def test_what_goes_wrong_has_its_exit_code(
    guest_stack: Stack, arguments: list[str], code: int, words: str
) -> None:
    ended = call(guest_stack, *arguments)
    assert (ended.returncode, ended.stdout) == (code, b""), ended.stderr
    assert words in ended.stderr.decode()
    assert b"Traceback" not in ended.stderr


def test_a_guest_without_an_agent(guest_stack: Stack) -> None:
    guest_stack.guest.silent = True
    try:
        ended = call(guest_stack, "exec", VM, "--", "true")
    finally:
        guest_stack.guest.silent = False
    assert ended.returncode == 1
    assert b"no guest agent" in ended.stderr
    assert b"try: use an image" in ended.stderr


def test_a_reader_that_has_had_enough_ends_the_program(guest_stack: Stack) -> None:
    with subprocess.Popen(
        command("exec", VM, "--", "yes"), stdout=subprocess.PIPE, env=environment(guest_stack)
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        process.wait(TIMEOUT_S)
    wait_until_idle(guest_stack)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ending_the_command_ends_the_program(guest_stack: Stack, number: signal.Signals) -> None:
    with subprocess.Popen(
        command("exec", VM, "--", "sh", "-c", "echo up; sleep 600"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment(guest_stack),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        process.wait(TIMEOUT_S)
    wait_until_idle(guest_stack)


class Terminal:
    """A pseudo-terminal of 31 rows and 91 columns with a command on it."""

    def __init__(self, stack: Stack, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(31, 91)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=environment(stack),
            start_new_session=True,
        )

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def until(self, words: bytes) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while words not in self.seen:
            left_s = max(0, deadline - time.monotonic())
            ready, _, _ = select.select([self.master], [], [], left_s)
            assert ready, f"{words!r} never came; seen: {self.seen!r}"
            self.seen += os.read(self.master, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(guest_stack: Stack) -> Iterator[Terminal]:
    made = Terminal(guest_stack, "exec", VM, "--", "sh", "-c", "echo be''gun; exec sh")
    made.until(b"begun")
    yield made
    made.close()


def test_a_terminal_is_the_guests_until_the_program_ends(terminal: Terminal) -> None:
    terminal.type(b"stty size; echo $TERM\n")
    terminal.until(b"31 91\r\n")
    terminal.until(b"vt100\r\n")
    assert termios.tcgetattr(terminal.slave) != terminal.before
    terminal.resize(41, 101)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    terminal.type(b"until stty size | grep '41 101'; do :; done\n")
    terminal.until(b"\n41 101\r\n")
    terminal.type(b"exec sh -c 'echo sl\"\"eeping; exec sleep 600'\n")
    terminal.until(b"sleeping")
    terminal.type(b"\x03")
    assert terminal.process.wait(TIMEOUT_S) == 130
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_the_terminal_is_restored_when_the_command_is_ended(
    terminal: Terminal, guest_stack: Stack
) -> None:
    terminal.type(b"echo i''t runs\n")
    terminal.until(b"it runs")
    terminal.process.terminate()
    assert terminal.process.wait(TIMEOUT_S) == 130
    assert termios.tcgetattr(terminal.slave) == terminal.before
    wait_until_idle(guest_stack)


def test_without_a_terminal_keys_are_edited_here(guest_stack: Stack) -> None:
    terminal = Terminal(guest_stack, "exec", "-T", VM, "--", "sh", "-c", "tty; cat; exit 6")
    terminal.until(b"not a tty")
    terminal.type(b"line\n\x04")
    assert terminal.process.wait(TIMEOUT_S) == 6
    terminal.close()


# -- cp --------------------------------------------------------------------------------------------


def test_files_keep_content_and_mode(guest_stack: Stack, folder: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "file").chmod(0o750)
    done(guest_stack, "cp", "file", f"{VM}:{folder}", cwd=tmp_path)
    done(guest_stack, "cp", "file", f"{VM}:{folder}/renamed", cwd=tmp_path)
    for name in ("file", "renamed"):
        there = guest_stack.root / folder[1:] / name
        assert there.read_bytes() == data
        assert there.stat().st_mode & 0o777 == 0o750
    (tmp_path / "back").mkdir()
    done(guest_stack, "cp", f"{VM}:{folder}/renamed", "back", cwd=tmp_path)
    assert (tmp_path / "back/renamed").read_bytes() == data
    assert (tmp_path / "back/renamed").stat().st_mode & 0o777 == 0o750
    done(guest_stack, "cp", f"{VM}:{folder}/file", "./odd:name", cwd=tmp_path)
    assert (tmp_path / "odd:name").read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "file", "odd:name"]


def test_through_pipes(guest_stack: Stack, folder: str) -> None:
    data = os.urandom(300_000)
    done(guest_stack, "cp", "-", f"{VM}:{folder}/x", stdin=data)
    assert done(guest_stack, "cp", f"{VM}:{folder}/x", "-") == data
    assert done(guest_stack, "cp", f"{VM}:{folder}/x", "/dev/stdout") == data


def make_tree(top: Path) -> None:
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "a").write_text("a")
    (top / "sub" / "b").write_text("b")
    (top / "sub" / "b").chmod(0o700)
    (top / "link").symlink_to("a")


def files(top: Path) -> dict[str, str]:
    return {
        str(path.relative_to(top)): path.read_text() if path.is_file() else "/"
        for path in top.rglob("*")
    }


TREE = {"a": "a", "link": "a", "sub": "/", "sub/b": "b", "sub/empty": "/"}


def test_directories_go_in(guest_stack: Stack, folder: str, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    for _ in range(2):
        done(guest_stack, "cp", "-r", "tree", f"{VM}:{folder}", cwd=tmp_path)
    done(guest_stack, "cp", "-r", "tree", f"{VM}:{folder}/new", cwd=tmp_path)
    done(guest_stack, "cp", "-r", ".", f"{VM}:{folder}/new/sub/empty", cwd=tmp_path / "tree")
    there = guest_stack.root / folder[1:]
    assert files(there / "tree") == TREE
    assert files(there / "new/sub/empty") == TREE
    assert (there / "new/sub/b").stat().st_mode & 0o777 == 0o700


def test_directories_come_out(guest_stack: Stack, folder: str, tmp_path: Path) -> None:
    make_tree(guest_stack.root / folder[1:] / "tree")
    for _ in range(2):
        done(guest_stack, "cp", "-r", f"{VM}:{folder}/tree", "new", cwd=tmp_path)
    assert files(tmp_path / "new") == {**TREE, **{f"tree/{k}": v for k, v in TREE.items()}} | {
        "tree": "/"
    }
    assert not (tmp_path / "new/link").is_symlink()


def test_what_cannot_be_copied_is_told(guest_stack: Stack, folder: str, tmp_path: Path) -> None:
    top = guest_stack.root / folder[1:]
    (top / "file").write_text("x")
    (top / "dangling").symlink_to("none")
    (top / "loop").symlink_to(".")
    os.mkfifo(top / "fifo")
    (top / os.fsdecode(b"bad-\xff")).write_text("x")
    ended = call(guest_stack, "cp", "-r", f"{VM}:{folder}", "out", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count(b"nexus: skipped") == 4
    assert files(tmp_path / "out") == {"file": "x"}
    os.mkfifo(tmp_path / "out" / "fifo")
    ended = call(guest_stack, "cp", "-r", "out", f"{VM}:{folder}/back", cwd=tmp_path)
    assert (ended.returncode, ended.stderr.count(b"nexus: skipped")) == (1, 1)
    assert files(top / "back") == {"file": "x"}


def test_a_download_that_fails_leaves_the_old_file(
    guest_stack: Stack, folder: str, tmp_path: Path
) -> None:
    from nexus.agent.guest_frames import FAILED, OUTPUT, RESULT, Frame, encode_fields

    (tmp_path / "kept").write_text("old")
    (guest_stack.root / folder[1:] / "x").write_text("new")
    facts = encode_fields([("kind", "file"), ("mode", "644"), ("size", "9")])
    failure = encode_fields([("code", "EIO"), ("message", "disk")])
    stat = Frame(RESULT, facts).encode()
    guest_stack.guest.answers = [
        stat,
        stat + Frame(OUTPUT, b"part").encode() + Frame(FAILED, failure).encode(),
    ]
    ended = call(guest_stack, "cp", f"{VM}:{folder}/x", "kept", cwd=tmp_path)
    assert ended.returncode == 1
    assert (tmp_path / "kept").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
