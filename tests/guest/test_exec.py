"""exec, as a host sees it: streams, exit codes, terminals, signals, and what ends with it."""

import os
import pwd
import signal
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.guest.speaking import Done, Failed, Talk, run

Connect = Callable[[], Talk]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


def gone(pid: int) -> bool:
    """Whether a process ends within the deadline."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(("program", "code"), [("true", 0), ("false", 1)])
def test_the_exit_code_comes_back(talk: Connect, program: str, code: int) -> None:
    assert run(talk(), program) == Done(code)


def test_streams_are_kept_apart(talk: Connect) -> None:
    assert run(talk(), "sh", "-c", "echo out; echo err >&2; exit 7") == Done(7, b"out\n", b"err\n")


def test_a_signal_is_128_and_its_number(talk: Connect) -> None:
    assert run(talk(), "sh", "-c", "kill -KILL $$").code == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["no-such-program"], "ENOENT"), (["/nowhere/x"], "ENOENT"), (["/etc/passwd"], "EACCES")],
)
def test_what_cannot_run_says_why(talk: Connect, arguments: list[str], code: str) -> None:
    with pytest.raises(Failed) as failed:
        run(talk(), *arguments)
    assert failed.value.code == code
    assert arguments[0] in failed.value.message


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TEXT, max_size=5), TEXT)
def test_arguments_and_environment_arrive_as_they_are(
    talk: Connect, words: list[str], value: str
) -> None:
    script = 'printf "%s\\0" "$VALUE" "$@"'
    done = run(talk(), "sh", "-c", script, "sh", *words, env=f"VALUE={value}")
    assert done.out.decode().split("\0")[:-1] == [value, *words]


def test_a_program_sees_its_surroundings(talk: Connect, tmp_path: Path) -> None:
    done = run(talk(), "sh", "-c", "pwd; umask; env", cwd=str(tmp_path), env="TERM=dumb")
    here, mask, *variables = done.out.decode().splitlines()
    assert (here, mask) == (str(tmp_path), "0022")
    home = pwd.getpwuid(os.geteuid())
    assert {f"HOME={home.pw_dir}", "TERM=dumb", f"USER={home.pw_name}"} <= set(variables)
    assert not [v for v in variables if v.startswith("PYTEST")]


def test_nothing_of_the_agent_leaks_into_a_program(talk: Connect) -> None:
    fds = run(talk(), "sh", "-c", "echo /proc/self/fd/*").out.split()
    assert len(fds) <= 4, fds  # the shell may hold the folder open
    status = run(talk(), "cat", "/proc/self/status").out.decode()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk"))
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn"))
    assert int(blocked.split()[1], 16) == 0
    # 32 and 33 are the C library's own: no program can change them, and the agent inherits them.
    assert int(ignored.split()[1], 16) & ~(0b11 << 31) == 0


@pytest.mark.root
def test_a_program_runs_as_the_user(talk: Connect) -> None:
    nobody = pwd.getpwnam("nobody")
    for user in ("nobody", str(nobody.pw_uid)):
        ids = run(talk(), "sh", "-c", "id -u; id -g; id -G", user=user, cwd="/").out.split()
        assert ids == [str(nobody.pw_uid).encode()] + [str(nobody.pw_gid).encode()] * 2
    assert run(talk(), "id", "-u", user="54321").out == b"54321\n"
    assert run(talk(), "id", "-G", user="54321").out == b"54321\n"
    with pytest.raises(Failed) as failed:
        run(talk(), "true", user="no-such-user")
    assert failed.value.code == "unknown-user"


def test_a_folder_that_is_not_there_is_named(talk: Connect) -> None:
    with pytest.raises(Failed) as failed:
        run(talk(), "true", cwd="/no/such/folder")
    assert (failed.value.code, "/no/such/folder" in failed.value.message) == ("ENOENT", True)


def test_a_mebibyte_goes_both_ways(talk: Connect) -> None:
    content = os.urandom(1 << 20)
    with ThreadPoolExecutor(1) as pool, talk() as connection:
        connection.ask(("op", "exec"), ("arg", "cat"))

        def send() -> None:
            for at in range(0, len(content), 50_000):
                connection.send(b"I", content[at : at + 50_000])
            connection.send(b"E")

        sending = pool.submit(send)
        assert connection.finish() == Done(0, content)
        sending.result()


def test_a_program_that_does_not_read_stops_nobody(talk: Connect) -> None:
    """It ends although the host would send more than it ever takes."""
    with talk() as connection:
        connection.ask(("op", "exec"), ("arg", "sh"), ("arg", "-c"), ("arg", "echo done"))
        connection.send(b"I", bytes(60_000))
        assert connection.finish() == Done(0, b"done\n")


def test_background_children_live_on_and_delay_nothing(talk: Connect) -> None:
    done = run(talk(), "sh", "-c", "sleep 100 & echo $!")
    assert done.code == 0
    child = int(done.out)
    os.kill(child, signal.SIGKILL)  # it was there


def test_a_signal_reaches_the_program(talk: Connect) -> None:
    with talk() as connection:
        script = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
        connection.ask(("op", "exec"), ("arg", "sh"), ("arg", "-c"), ("arg", script))
        connection.until(b"O", b"ready")
        connection.send(b"S", bytes([signal.SIGUSR1]))
        done = connection.finish()  # the shell may say on stderr that its sleep was signalled, too
        assert (done.code, done.out) == (3, b"got\n")


def test_a_terminal_has_a_size_that_changes(talk: Connect) -> None:
    with talk() as connection:
        connection.ask(
            ("op", "exec"), ("arg", "sh"), ("tty", 1), ("rows", 30), ("cols", 90), ("env", "PS1=> ")
        )
        connection.until(b"O", b"> ")
        connection.send(b"I", b"tty && stty size\n")
        assert b"/dev/pts/" in connection.until(b"O", b"30 90")
        connection.send(b"I", b"trap 'stty size' WINCH; echo trap''ped\n")
        connection.until(b"O", b"trapped")
        connection.send(b"W", struct.pack(">HH", 50, 132))
        connection.send(b"I", b"\n")
        connection.until(b"O", b"50 132")
        connection.send(b"I", b"exit 5\n")
        assert connection.finish().code == 5


def test_control_c_and_the_end_of_input_work_on_a_terminal(talk: Connect) -> None:
    with talk() as connection:
        connection.ask(("op", "exec"), ("arg", "sh"), ("tty", 1), ("env", "PS1=> "))
        connection.until(b"O", b"> ")
        connection.send(b"I", b"echo be''gun; cat\n")
        connection.until(b"O", b"begun")
        connection.send(b"I", b"echoed\n")
        connection.until(b"O", b"echoed\r\nechoed")  # the terminal's echo, then the program's
        connection.send(b"I", b"\x03")
        connection.until(b"O", b"> ")
        connection.send(b"E")
        assert connection.finish().code == 128 + signal.SIGINT


def test_the_last_words_on_a_terminal_arrive(talk: Connect) -> None:
    for _ in range(20):
        assert run(talk(), "echo", "last words", tty=1).out == b"last words\r\n"


def test_a_signal_on_a_terminal_reaches_the_job_in_front(talk: Connect) -> None:
    with talk() as connection:
        connection.ask(("op", "exec"), ("arg", "sh"), ("tty", 1), ("env", "PS1=> "))
        connection.until(b"O", b"> ")
        connection.send(b"I", b"sh -c 'echo be''gun; exec sleep 100'\n")
        connection.until(b"O", b"begun")
        connection.send(b"S", bytes([signal.SIGTERM]))
        connection.until(b"O", b"> ")
        connection.send(b"I", b"exit 0\n")
        assert connection.finish().code == 0


@pytest.mark.parametrize("tty", [0, 1])
def test_all_that_it_started_ends_with_the_connection(talk: Connect, tty: int) -> None:
    """Also what ignores a hang-up, and what has a process group of its own."""
    script = "trap '' HUP; set -m 2>/dev/null; sleep 100 & echo $!; echo $$; sleep 101"
    with talk() as connection:
        connection.ask(("op", "exec"), ("arg", "sh"), ("arg", "-c"), ("arg", script), ("tty", tty))
        said = connection.until(b"O", b"\n")
        while len(said.split()) < 2 or not said.endswith(b"\n"):
            said += connection.receive()[1]
    for word in said.split():
        assert gone(int(word))


def test_a_hang_up_lets_a_program_clean_up(talk: Connect, tmp_path: Path) -> None:
    note = tmp_path / "note"
    script = f"trap 'echo cleaned >{note}; exit' HUP; echo $$; while :; do sleep 0.05; done"
    with talk() as connection:
        connection.ask(("op", "exec"), ("arg", "sh"), ("arg", "-c"), ("arg", script))
        pid = int(connection.until(b"O", b"\n"))
    assert gone(pid)
    assert note.read_text() == "cleaned\n"


def test_a_stopped_host_stops_the_program_and_no_other(talk: Connect) -> None:
    with talk() as stalled:
        stalled.ask(("op", "exec"), ("arg", "yes"))
        kind, said = stalled.receive()
        assert (kind, said[:4]) == (b"O", b"y\ny\n")
        with ThreadPoolExecutor(10) as pool:
            jobs = [pool.submit(run, talk(), "echo", str(number)) for number in range(20)]
            assert [int(job.result().out) for job in jobs] == list(range(20))


@pytest.mark.parametrize(
    "frame", [(b"I" * 1, None), (b"Z", b""), (b"S", b"\0"), (b"W", b"123"), (b"E", b"x")]
)
def test_nonsense_ends_the_program(talk: Connect, frame: tuple[bytes, bytes | None]) -> None:
    kind, payload = frame
    with talk() as connection:
        script = "echo $$; exec sleep 100"
        connection.ask(("op", "exec"), ("arg", "sh"), ("arg", "-c"), ("arg", script))
        pid = int(connection.until(b"O", b"\n"))
        if payload is None:
            connection.sock.sendall(kind + struct.pack(">I", 65537))
        else:
            connection.send(kind, payload)
        with pytest.raises(Failed) as failed:
            connection.finish()
    assert failed.value.code == "EPROTO"
    assert gone(pid)
