"""put, get, stat, list, mkdir, health, and requests that nobody can answer."""

import contextlib
import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.guest.conftest import HostAgent
from tests.guest.speaking import Failed, Talk, ask, get, listing, put

Connect = Callable[[], Talk]


def code_of(connection: Talk, *fields: tuple[str, object]) -> str:
    with connection:
        connection.ask(*fields)
        with pytest.raises(Failed) as failed:
            connection.answer()
    assert failed.value.message
    return failed.value.code


@pytest.mark.parametrize("size", [0, 1, 65536, 5 << 20])
def test_what_is_put_is_what_one_gets(talk: Connect, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    target = tmp_path / "a file"
    pieces = [content[at : at + 60_000] for at in range(0, size, 60_000)]
    assert put(talk(), str(target), pieces, "750") == [("bytes", str(size))]
    assert target.stat().st_mode & 0o7777 == 0o750
    fields, got = get(talk(), str(target))
    assert fields == [("kind", "file"), ("mode", "750"), ("size", str(size))]
    assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()
    assert [p.name for p in tmp_path.iterdir()] == ["a file"]


def test_a_file_without_a_size_is_read_to_its_end(talk: Connect) -> None:
    fields, content = get(talk(), "/proc/version")
    assert dict(fields)["size"] == "0"
    assert content == Path("/proc/version").read_bytes()


def test_a_broken_off_put_leaves_nothing(talk: Connect, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    with talk() as connection:
        connection.ask(("op", "put"), ("path", target), ("mode", 600))
        connection.send(b"I", b"half of it")
    deadline = time.monotonic() + 30
    while [p.name for p in tmp_path.iterdir()] != ["target"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert target.read_text() == "old"


def test_a_link_is_replaced_and_not_followed(talk: Connect, tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_text("other")
    link.symlink_to(other)
    put(talk(), str(link), [b"new"])
    assert (other.read_text(), link.read_text(), link.is_symlink()) == ("other", "new", False)


def test_put_says_why_it_cannot(talk: Connect, tmp_path: Path) -> None:
    cases = {
        "/no/such/folder/file": "ENOENT",
        f"{tmp_path}/": "EISDIR",
        f"{tmp_path}/{'x' * 300}": "ENAMETOOLONG",
        "/proc/version": "EACCES",
    }
    for path, code in cases.items():
        with pytest.raises(Failed) as failed:
            put(talk(), path, [bytes(60_000)] * 4)
        # procfs has words of its own for a file that cannot be made
        assert failed.value.code in (code, "ENOENT"), path
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(Failed) as failed:
        put(talk(), str(tmp_path / "folder"), [b"x"])
    assert failed.value.code == "EISDIR"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_get_takes_regular_files_alone(talk: Connect, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert code_of(talk(), ("op", "get"), ("path", tmp_path)) == "EISDIR"
    assert code_of(talk(), ("op", "get"), ("path", tmp_path / "pipe")) == "not-a-file"
    assert code_of(talk(), ("op", "get"), ("path", "/dev/zero")) == "not-a-file"
    assert code_of(talk(), ("op", "get"), ("path", tmp_path / "no")) == "ENOENT"


def test_stat_tells_kinds(talk: Connect, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "file").chmod(0o4755)
    (tmp_path / "link").symlink_to("some where")
    assert ask(talk(), "stat", path=tmp_path / "file") == [
        ("kind", "file"),
        ("mode", "4755"),
        ("size", "5"),
    ]
    assert dict(ask(talk(), "stat", path=tmp_path))["kind"] == "dir"
    assert dict(ask(talk(), "stat", path="/dev/null"))["kind"] == "other"
    link = dict(ask(talk(), "stat", path=tmp_path / "link"))
    assert (link["kind"], link["target"]) == ("link", "some where")
    assert code_of(talk(), ("op", "stat"), ("path", tmp_path / "no")) == "ENOENT"


def test_a_folder_is_listed_in_as_many_answers_as_it_takes(talk: Connect, tmp_path: Path) -> None:
    assert listing(talk(), str(tmp_path)) == []
    names = [f"{number:04}-{'x' * 200}" for number in range(1000)]
    for name in names:
        (tmp_path / name).touch(0o644)
    (tmp_path / "a,b\nc").mkdir(0o700)
    found = listing(talk(), str(tmp_path))
    assert [e for e in found if e.startswith("f")] == [f"f,644,0,{name}" for name in names]
    (folder,) = [e for e in found if e.startswith("d")]
    assert (folder.startswith("d,700,"), folder.endswith(",a,b\nc")) == (True, True)
    assert code_of(talk(), ("op", "list"), ("path", tmp_path / names[0])) == "ENOTDIR"


def test_mkdir_makes_a_folder_once(talk: Connect, tmp_path: Path) -> None:
    path = tmp_path / "new"
    assert ask(talk(), "mkdir", path=path, mode=1777) == []
    assert path.stat().st_mode & 0o7777 == 0o1777
    assert code_of(talk(), ("op", "mkdir"), ("path", path), ("mode", 755)) == "EEXIST"


def test_health_names_the_guest(talk: Connect) -> None:
    said = dict(ask(talk(), "health"))
    assert (said["version"], said["hostname"], said["ready"]) == ("2", socket.gethostname(), "1")
    assert int(said["uptime_s"]) > 0


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("path", "/")],
        [("op", "put"), ("path", "relative")],
        [("op", "stat")],
        [("op", "exec")],
        [("op", "exec"), ("arg", "true"), ("env", "NOTHING")],
        [("op", "exec"), ("arg", "true"), ("env", "=x")],
        [("op", "exec"), ("arg", "true"), ("tty", "2")],
        [("op", "exec"), ("arg", "true"), ("rows", "70000")],
        [("op", "exec"), ("arg", "true"), ("cols", "-1")],
        [("op", "exec"), ("arg", "true"), ("cwd", "x")],
        [("op", "mkdir"), ("path", "/x"), ("mode", "999")],
        [("op", "mkdir"), ("path", "/x"), ("mode", "17777")],
    ],
)
def test_bad_requests_are_refused(talk: Connect, fields: list[tuple[str, object]]) -> None:
    assert code_of(talk(), *fields) == "EINVAL"


def test_an_unknown_operation_is_named(talk: Connect) -> None:
    assert code_of(talk(), ("op", "fly")) == "unknown-op"


def test_fields_of_a_newer_host_are_left_alone(talk: Connect) -> None:
    assert ask(talk(), "health", colour="green")


def test_a_first_frame_of_another_kind_is_refused(talk: Connect) -> None:
    with talk() as connection:
        connection.send(b"I", b"x")
        kind, said = connection.receive()
        assert (kind, b"code=EINVAL" in said) == (b"X", True)


READ_ONLY = st.sampled_from([b"op=health", b"op=stat", b"op=list", b"op=get", b"op=", b"op"])
FIELDS = st.lists(
    READ_ONLY | st.sampled_from([b"path=/", b"path=/proc/self", b"tty=1"]) | st.binary(max_size=30),
    max_size=12,
).map(b"\0".join)
FRAMES = st.builds(
    lambda kind, length, payload: bytes([kind]) + struct.pack(">I", length) + payload,
    st.sampled_from(list(b"QIEWSOTCRX\0")) | st.integers(0, 255),
    st.integers(0, 200) | st.integers(0, (1 << 32) - 1),
    FIELDS,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300) | FRAMES | st.lists(FRAMES, max_size=4).map(b"".join))
def test_no_bytes_harm_the_agent(agent: HostAgent, data: bytes) -> None:
    """Whatever a connection holds, it ends and the next one is served."""
    if b"op=put" in data or b"op=mkdir" in data or b"op=exec" in data:
        return
    with agent.talk() as connection:
        connection.sock.sendall(data)
        connection.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # it left some of it unread
            while connection.sock.recv(65536):
                pass
    assert dict(ask(agent.talk(), "health"))["ready"] == "1"


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([0, 1]), st.lists(FRAMES, max_size=8).map(b"".join))
def test_no_frames_harm_a_program_or_the_agent(agent: HostAgent, tty: int, data: bytes) -> None:
    """Whatever comes after an exec, the program ends with the connection at the latest."""
    with agent.talk() as connection:
        connection.ask(("op", "exec"), ("arg", "cat"), ("tty", tty))
        connection.sock.sendall(data)
    assert dict(ask(agent.talk(), "health"))["ready"] == "1"
    deadline = time.monotonic() + 30
    while agent.handlers():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_silent_connections_are_bounded_and_end(guest_agent: Path, tmp_path: Path) -> None:
    """64 that say nothing keep others out for ten seconds at most; no process is left."""
    agent = HostAgent(guest_agent, tmp_path)
    try:
        silent = [agent.talk() for _ in range(64)]
        deadline = time.monotonic() + 30
        while len(agent.handlers()) < 64:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with agent.talk() as one_more, pytest.raises((EOFError, ConnectionError)):
            one_more.receive()
        for connection in silent:
            assert connection.sock.recv(1) == b""
            connection.sock.close()
        assert dict(ask(agent.talk(), "health"))["ready"] == "1"
        while agent.handlers():
            assert time.monotonic() < deadline + 30
            time.sleep(0.01)
    finally:
        agent.close()
