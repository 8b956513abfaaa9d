"""Many streams over one port: nexus-qemu's vsock device against the real agent, without a QEMU."""

import contextlib
import os
import select
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus.qemu import mux
from nexus.qemu.faults import Fault
from nexus.qemu.vsock import Vsock
from tests.guest.port import Port
from tests.guest.speaking import DEADLINE_S, Done, NoAgent, Talk, ask, connect, get, put, run

Connect = Callable[[], Talk]


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    made = Port(tmp_path)
    yield made
    made.close()


@pytest.fixture
def talk(port: Port, guest_agent: Path) -> Connect:
    port.start_agent(guest_agent)
    return lambda: connect(port.path)


def test_a_stream_is_a_connection_with_the_agent(talk: Connect, tmp_path: Path) -> None:
    assert run(talk(), "sh", "-c", "cat; exit 4", stdin=b"words") == Done(4, b"words")
    content = os.urandom(5 << 20)
    put(
        talk(),
        str(tmp_path / "file"),
        [content[at : at + 65536] for at in range(0, 5 << 20, 65536)],
    )
    assert get(talk(), str(tmp_path / "file"))[1] == content


def test_twenty_streams_at_once(talk: Connect) -> None:
    def work(number: int) -> Done:
        content = bytes([number]) * 300_000
        return run(
            talk(),
            "sh",
            "-c",
            f"cat >/dev/null; head -c 300000 /dev/zero; exit {number}",
            stdin=content,
        )

    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(work, range(20)))
    assert [d.code for d in done] == list(range(20))
    assert {len(d.out) for d in done} == {300_000}


def test_streams_that_nobody_reads_stop_no_other(talk: Connect) -> None:
    """Stalled both ways: hosts that do not read, programs that do not read."""
    stalled = [talk() for _ in range(10)]
    for connection in stalled[:5]:
        connection.ask(("op", "exec"), ("arg", "cat"), ("arg", "/dev/zero"))
    for connection in stalled[5:]:
        connection.ask(("op", "exec"), ("arg", "sleep"), ("arg", "100"))
        connection.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                connection.sock.send(b"I" + struct.pack(">I", 65536) + bytes(65536))
    assert run(talk(), "cat", stdin=bytes(1 << 20)) == Done(0, bytes(1 << 20))
    for connection in stalled:
        connection.sock.close()
    assert dict(ask(talk(), "health"))["ready"] == "1"


def test_the_end_of_a_connection_ends_what_it_started(talk: Connect) -> None:
    with talk() as connection:
        connection.ask(("op", "exec"), ("arg", "sh"), ("arg", "-c"), ("arg", "echo $$; sleep 100"))
        pid = int(connection.until(b"O", b"\n"))
        pidfd = os.pidfd_open(pid)
    try:
        assert select.select([pidfd], [], [], DEADLINE_S)[0]
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("line", [b"CONNECT 1025\n", b"HELLO\n", b"CONNECT x\n", b"C" * 40])
def test_other_ports_and_other_words_are_closed(port: Port, talk: Connect, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(str(port.path))
        sock.sendall(line)
        assert sock.recv(100) == b""
    assert run(talk(), "true") == Done(0)


def test_without_an_agent_a_connection_is_closed(port: Port) -> None:
    with pytest.raises(NoAgent):
        connect(port.path)
    # The port is open and nobody answers.
    port.do(lambda: port.device.port_changed(is_open=True))
    with pytest.raises(NoAgent):
        connect(port.path)


def test_what_comes_with_the_connect_line_is_not_lost(port: Port, talk: Connect) -> None:
    request = b"op=exec\0arg=cat"
    frames = b"Q" + struct.pack(">I", len(request)) + request
    for _ in range(30):
        frames += b"I" + struct.pack(">I", 5000) + bytes(5000)
    frames += b"E" + bytes(4)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_S)
    sock.connect(str(port.path))
    sock.sendall(b"CONNECT 1024\n" + frames)
    assert sock.recv(3) == b"OK "
    while sock.recv(1) != b"\n":
        pass
    with Talk(sock) as connection:
        assert connection.finish() == Done(0, bytes(150_000))


def test_a_new_agent_and_a_new_host_begin_anew(
    port: Port, guest_agent: Path, tmp_path: Path
) -> None:
    """Either end changes in the middle of frames, as in a snapshot's load."""
    agent = port.start_agent(guest_agent)
    old = connect(port.path)
    old.ask(("op", "exec"), ("arg", "cat"), ("arg", "/dev/zero"))
    assert old.receive()[0] == b"O"
    agent.kill()
    agent.wait()
    port.do(lambda: port.device.port_changed(is_open=False))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            old.receive()
    old.sock.close()
    with pytest.raises(NoAgent):
        connect(port.path)

    port.start_agent(guest_agent)
    assert run(connect(port.path), "true") == Done(0)

    # The guest half way in a frame, and half a frame of its own on the way.
    stalled = connect(port.path)
    stalled.ask(("op", "exec"), ("arg", "cat"), ("arg", "/dev/zero"))
    assert stalled.receive()[0] == b"O"

    def cut() -> None:
        port.device.port_changed(is_open=False)
        port.device._port.send(mux.encode(mux.Frame(mux.DATA, 99, bytes(10_000)))[:5_000])  # type: ignore[union-attr]
        port.device.port_changed(is_open=True)

    port.do(cut)
    stalled.sock.close()
    assert run(connect(port.path), "echo", "again") == Done(0, b"again\n")


FRAMES = st.lists(
    st.builds(mux.Frame, st.just(mux.DATA), st.integers(1, 9), st.binary(min_size=1, max_size=99))
    | st.builds(mux.Frame, st.sampled_from([mux.OPEN, mux.CLOSE, mux.ACCEPT]), st.integers(1, 9))
    | st.builds(mux.credit, st.integers(1, 9), st.integers(0, 1 << 32 - 1)),
    max_size=10,
)
NONCE = bytes(range(mux.NONCE_SIZE))


@given(st.binary(max_size=200), FRAMES, st.data())
def test_frames_are_read_however_they_are_cut(
    before: bytes, frames: list[mux.Frame], data: st.DataObject
) -> None:
    stream = before + mux.encode(mux.Frame(mux.SYNC, 0, NONCE))
    stream += b"".join(mux.encode(frame) for frame in frames)
    reader, found = mux.Reader(NONCE), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert (reader.synced, found) == (True, frames)


@given(st.binary(max_size=500))
def test_a_reader_takes_any_bytes(data: bytes) -> None:
    reader = mux.Reader(NONCE)
    assert list(reader.feed(mux.encode(mux.Frame(mux.SYNC, 0, NONCE)))) == []
    try:
        for frame in reader.feed(data):
            assert len(frame.payload) <= mux.MAX_PAYLOAD
    except mux.Garbled:
        pass


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=100) | FRAMES.map(lambda f: b"".join(map(mux.encode, f)))))
def test_an_agent_answers_a_call_after_any_bytes(guest_agent: Path, parts: list[bytes]) -> None:
    host, guest = socket.socketpair()
    fd = guest.fileno()
    agent = subprocess.Popen([guest_agent, "--port", str(fd)], pass_fds=[fd])
    try:
        host.settimeout(DEADLINE_S)
        host.sendall(b"".join(parts).replace(b"op=", b"no=") + mux.call(NONCE))
        reader = mux.Reader(NONCE)
        while not reader.synced:
            assert list(reader.feed(host.recv(65536))) == []
    finally:
        agent.kill()
        agent.wait()
        host.close()
        guest.close()


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=100) | FRAMES.map(lambda f: b"".join(map(mux.encode, f)))))
def test_a_device_bears_any_guest(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    """Whatever the guest sends, also in a conversation that is under way."""
    path = tmp_path_factory.mktemp("v") / "v.sock"
    device = Vsock(str(path), "")
    ours, guest = socket.socketpair()
    device.attach(ours, is_open=True)
    program = socket.socket(socket.AF_UNIX)
    program.connect(str(path))
    program.sendall(b"CONNECT 1024\n")
    guest.setblocking(False)
    said = b""
    try:
        for part in [b"", *parts]:
            guest.sendall(part)
            device.serve()
            device.serve()
            said += guest.recv(1 << 20)
            at = said.rfind(b"S\0\0\0\0\0\x10")
            guest.sendall(said[at : at + mux.HEADER.size + mux.NONCE_SIZE])
            device.serve()
            device.expire()
    except BlockingIOError:
        pass
    finally:
        program.close()
        device.remove()
        guest.close()


def test_a_path_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Fault, match="Address in use"):
        Vsock(str(tmp_path / "file"), "")
