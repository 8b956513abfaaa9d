"""The host's client and the guest's agent, each the real one, speak with each other."""

import errno
import os
import pwd
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nexus.agent import guest
from nexus.agent.guest_frames import OUTPUT
from nexus.agent.guest_identity import GuestIdentity, GuestNic
from nexus.api.errors import GuestAgentMissing, GuestFault, NotFound
from nexus.api.guest import ExecExit, ExecStart
from tests.guest.cell import Cell
from tests.guest.port import Port

pytestmark = pytest.mark.anyio


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    folder = tmp_path / "vm"
    folder.mkdir()
    made = Port(folder)
    yield made
    made.close()


@pytest.fixture
def vsock(port: Port, guest_agent: Path) -> Path:
    port.start_agent(guest_agent)
    return port.path


async def run(vsock: Path, *argv: str, stdin: bytes = b"", **more: object) -> tuple[int, bytes]:
    start = ExecStart.model_validate({"argv": argv, **more})
    out, code = b"", -1
    async with guest.run(vsock, start) as process:
        await process.send(stdin)
        await process.end_input()
        async for piece in process:
            if isinstance(piece, ExecExit):
                code = piece.exit_code
            elif piece[0] == OUTPUT:
                out += piece[1]
    return code, out


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 100_000):
        yield content[at : at + 100_000]


async def test_programs(vsock: Path) -> None:
    assert await run(vsock, "sh", "-c", "cat; exit 7", stdin=b"in") == (7, b"in")
    name = pwd.getpwuid(os.geteuid()).pw_name
    variables = {"A": "b=c d"}
    told = await run(vsock, "sh", "-c", 'echo "$A"; id -un; pwd', env=variables, cwd="/", user=name)
    assert told == (0, f"b=c d\n{name}\n/\n".encode())
    script = "stty size; echo $TERM"
    told = await run(vsock, "sh", "-c", script, tty=True, rows=30, cols=90)
    assert told == (0, b"30 90\r\nxterm-256color\r\n")
    async with guest.run(vsock, ExecStart(argv=["sleep", "600"])) as process:
        await process.signal(signal.SIGTERM)
        assert [p async for p in process] == [ExecExit(exit_code=128 + signal.SIGTERM)]
    for argv, code in ((["no-such-program"], "ENOENT"), (["/etc/passwd"], "EACCES")):
        with pytest.raises(GuestFault) as refused:
            await run(vsock, *argv)
        assert (refused.value.fault_message or "").startswith(f"{code}:")


async def test_files(vsock: Path, tmp_path: Path) -> None:
    content = os.urandom(2 << 20)
    path = tmp_path / "grüße, b"
    assert await guest.put(vsock, str(path), 0o640, pieces(content)) == len(content)
    async with guest.get(vsock, str(path)) as (found, chunks):
        assert (found.kind, found.mode, found.size_bytes) == ("file", 0o640, len(content))
        assert b"".join([chunk async for chunk in chunks]) == content
    await guest.make_directory(vsock, str(tmp_path / "folder"), 0o700)
    (tmp_path / "link").symlink_to("folder")
    link = await guest.stat(vsock, str(tmp_path / "link"))
    assert (link.kind, link.target) == ("link", "folder")
    listed = {entry.name: entry.kind for entry in await guest.list_directory(vsock, str(tmp_path))}
    assert listed == {"grüße, b": "file", "folder": "dir", "link": "link", "vm": "dir"}
    with pytest.raises(NotFound):
        await guest.stat(vsock, str(tmp_path / "no"))
    with pytest.raises(GuestFault) as refused:
        await guest.put(vsock, str(tmp_path / "folder" / ""), 0o600, pieces(content))
    assert (refused.value.fault_message or "").startswith(errno.errorcode[errno.EISDIR])


async def test_health(vsock: Path) -> None:
    said = await guest.health(vsock)
    assert (said.version, said.ready, said.hostname) == (2, True, os.uname().nodename)


@pytest.mark.root
async def test_a_guest_becomes_somebody_else(port: Port, guest_agent: Path, tmp_path: Path) -> None:
    cell = Cell(guest_agent, tmp_path)
    cell.pid = port.start_agent(*cell.command).pid
    await guest.health(port.path)  # from here on it is in a network of its own
    old, new = "06:00:00:00:00:01", "06:00:00:00:00:02"
    cell.ip("link", "add", "eth0", "address", old, "type", "veth", "peer", "name", "other")
    cell.ip("link", "set", "other", "up")
    nic = GuestNic(old, new, "10.77.0.9/20", "10.77.0.1")
    for _ in range(2):
        await guest.identify(port.path, GuestIdentity("clone", "ab" * 16, (nic,), ("10.77.0.1",)))
    said = await guest.health(port.path)
    assert said.hostname == "clone"
    assert [(a.mac, a.ip) for a in said.addresses if ":" not in a.ip] == [(new, "10.77.0.9/20")]
    assert cell.text("etc/machine-id") == "ab" * 16 + "\n"
    absent = GuestNic("06:00:00:00:00:77", "06:00:00:00:00:78", "10.77.0.9/20")
    with pytest.raises(GuestFault, match="no network interface"):
        await guest.identify(port.path, GuestIdentity(nics=(absent,)))


async def test_a_guest_without_an_agent_is_said_to_have_none(port: Port) -> None:
    with pytest.raises(GuestAgentMissing):
        await guest.health(port.path)
