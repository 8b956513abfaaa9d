"""The client of a guest's agent against a double that runs real programs and writes real files."""

import asyncio
import hashlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nexus.agent import guest
from nexus.agent.guest_frames import FAILED, OUTPUT, RESULT, Frame, encode_fields
from nexus.agent.guest_identity import GuestIdentity, GuestNic
from nexus.api.errors import (
    GuestAgentMissing,
    GuestFault,
    NexusError,
    NotFound,
    ValidationFailed,
)
from nexus.api.guest import ExecExit, ExecStart
from tests.guest_double import GuestDouble
from tests.manager.core import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def double(tmp_path: Path) -> AsyncIterator[GuestDouble]:
    """With a socket whose path is longer than a socket address."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    async with GuestDouble(folder / "v.sock", root).serving() as double:
        yield double


async def idle(double: GuestDouble) -> None:
    """Returns when nothing is left of what was asked."""

    async def is_idle() -> bool:
        return not double.connections and not double.pids

    await until("the guest is idle", is_idle)


async def run(
    double: GuestDouble, *argv: str, stdin: bytes = b"", **options: object
) -> tuple[int, bytes, bytes]:
    out, err, code = b"", b"", -1
    start = ExecStart.model_validate({"argv": argv, **options})

    async def type_in() -> None:
        await process.send(stdin)
        await process.end_input()

    async with guest.run(double.socket, start) as process:
        # While its output is read: a program may wait until somebody does before it reads on.
        typing = asyncio.create_task(type_in())
        try:
            async for piece in process:
                if isinstance(piece, ExecExit):
                    code = piece.exit_code
                elif piece[0] == OUTPUT:
                    out += piece[1]
                else:
                    err += piece[1]
        finally:
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)
    return code, out, err


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_program_has_streams_environment_and_an_exit_code(double: GuestDouble) -> None:
    script = 'cat; echo "$A" >&2; exit 7'
    ended = await run(double, "sh", "-c", script, stdin=b"in\n", env={"A": "b=c d"})
    assert ended == (7, b"in\n", b"b=c d\n")


async def test_large_input_and_output_pass_at_once(double: GuestDouble) -> None:
    data = bytes(range(256)) * 4096
    code, out, _ = await run(double, "cat", stdin=data)
    assert (code, out) == (0, data)


async def test_a_signal_ends_a_program(double: GuestDouble) -> None:
    async with guest.run(double.socket, ExecStart(argv=["sleep", "600"])) as process:
        await process.signal(signal.SIGTERM)
        assert [piece async for piece in process] == [ExecExit(exit_code=128 + signal.SIGTERM)]


async def test_a_terminal_has_a_size_that_can_change(double: GuestDouble) -> None:
    start = ExecStart(argv=["sh", "-c", "stty size; read x; stty size"], tty=True, rows=30, cols=90)
    seen, typed = b"", False
    async with guest.run(double.socket, start) as process:
        async for piece in process:
            if isinstance(piece, ExecExit):
                break
            seen += piece[1]
            if b"30 90" in seen and not typed:
                await process.resize(41, 101)
                await process.send(b"x\n")
                typed = True
    assert seen.split() == [b"30", b"90", b"x", b"41", b"101"]


async def test_leaving_ends_the_program_and_the_connection(double: GuestDouble) -> None:
    async with guest.run(double.socket, ExecStart(argv=["sleep", "600"])):

        async def runs() -> bool:
            return bool(double.pids)

        await until("the program runs", runs)
    await idle(double)


async def test_a_program_that_is_not_there_says_so(double: GuestDouble) -> None:
    with pytest.raises(GuestFault) as refused:
        await run(double, "no-such-program")
    assert (refused.value.fault_message or "").startswith("ENOENT:")
    assert refused.value.status == 409


async def test_a_request_that_fits_in_no_frame_is_refused(double: GuestDouble) -> None:
    with pytest.raises(ValidationFailed):
        await run(double, "echo", "x" * 30_000, "y" * 30_000, "z" * 30_000)
    await idle(double)


async def test_files_go_in_and_come_back(double: GuestDouble) -> None:
    await guest.make_directory(double.socket, "/dir", 0o750)
    pieces = [bytes([number]) * 70_000 for number in range(20)]
    assert await guest.put(double.socket, "/dir/file", 0o640, chunks(*pieces)) == 1_400_000
    async with guest.get(double.socket, "/dir/file") as (file, content):
        assert (file.kind, file.mode, file.size_bytes) == ("file", 0o640, 1_400_000)
        digest = hashlib.sha256()
        async for chunk in content:
            digest.update(chunk)
    assert digest.digest() == hashlib.sha256(b"".join(pieces)).digest()
    (double.root / "dir/link").symlink_to("file")
    (entry, link) = await guest.list_directory(double.socket, "/dir")
    assert (entry.name, entry.kind, entry.size_bytes) == ("file", "file", 1_400_000)
    assert (link.name, link.kind) == ("link", "link")
    assert (await guest.stat(double.socket, "/dir/link")).target == "file"
    assert (await guest.stat(double.socket, "/dir")).mode == 0o750


async def test_an_upload_cut_off_leaves_the_old_file(double: GuestDouble) -> None:
    (double.root / "file").write_bytes(b"old")

    async def broken() -> AsyncIterator[bytes]:
        yield b"new"
        raise ConnectionAbortedError("the sender is gone")

    with pytest.raises(ConnectionAbortedError):
        await guest.put(double.socket, "/file", 0o644, broken())
    await idle(double)
    assert (double.root / "file").read_bytes() == b"old"
    assert [path.name for path in double.root.iterdir()] == ["file"]


@pytest.mark.parametrize("missing", ["/none", "/none/below"])
async def test_a_missing_file_is_not_found(double: GuestDouble, missing: str) -> None:
    with pytest.raises(NotFound):
        await guest.stat(double.socket, missing)
    with pytest.raises(NotFound):
        await guest.list_directory(double.socket, missing)
    with pytest.raises(NotFound):
        async with guest.get(double.socket, missing):
            pass


async def test_a_refused_upload_says_why_however_much_is_sent(double: GuestDouble) -> None:
    pieces = [b"x" * 65536] * 64
    with pytest.raises(NotFound):
        await guest.put(double.socket, "/none/file", 0o644, chunks(*pieces))
    with pytest.raises(GuestFault) as refused:
        await guest.put(double.socket, "/", 0o644, chunks(*pieces))
    assert refused.value.fault_message


async def test_the_guest_tells_of_itself(double: GuestDouble) -> None:
    info = await guest.health(double.socket)
    assert (info.version, info.hostname, info.ready) == (2, "double", True)
    assert [address.ip for address in info.addresses] == ["10.77.0.5/20", "fe80::1/64"]


async def test_a_guest_is_told_who_it_is(double: GuestDouble) -> None:
    nic = GuestNic("06:00:00:00:00:01", "06:00:00:00:00:02", "10.77.0.9/20", "10.77.0.1")
    apart = GuestNic("06:00:00:00:01:01", "06:00:00:00:01:02", "10.99.0.9/24")
    identity = GuestIdentity("name", "ab" * 16, (nic, apart), ("10.77.0.1", "9.9.9.9"))
    before_ms = time.time_ns() // 1_000_000
    await guest.identify(double.socket, identity)
    await guest.identify(double.socket, GuestIdentity())
    told, bare = double.identities
    fresh, now_ms = dict(told)["entropy"], int(dict(told)["time_ms"])
    assert [(key, value) for key, value in told if key not in ("entropy", "time_ms")] == [
        ("op", "identify"),
        ("hostname", "name"),
        ("machine_id", "ab" * 16),
        ("nic", "06:00:00:00:00:01,06:00:00:00:00:02,10.77.0.9/20,10.77.0.1"),
        ("nic", "06:00:00:00:01:01,06:00:00:00:01:02,10.99.0.9/24,"),
        ("dns", "10.77.0.1"),
        ("dns", "9.9.9.9"),
    ]
    assert before_ms <= now_ms <= time.time_ns() // 1_000_000
    assert len(bytes.fromhex(fresh)) == 64
    assert dict(bare).keys() == {"op", "entropy", "time_ms"}
    assert dict(bare)["entropy"] != fresh


async def test_a_guest_that_cannot_become_another_says_why(double: GuestDouble) -> None:
    said = {
        "unknown-op": "too old",
        "no-such-nic": "no network interface",
        "EINVAL": "refused",
    }
    for code, text in said.items():
        fields = [("code", code), ("message", "no network interface has the address")]
        double.answers = [Frame(FAILED, encode_fields(fields)).encode()]
        with pytest.raises(GuestFault, match=text) as refused:
            await guest.identify(double.socket, GuestIdentity("name"))
        assert (refused.value.fault_message or "").startswith(f"{code}:")
    double.answers = [Frame(RESULT).encode()]
    with pytest.raises(GuestFault, match="not understood"):
        await guest.identify(double.socket, GuestIdentity("name"))
    double.silent = True
    with pytest.raises(GuestAgentMissing):
        await guest.identify(double.socket, GuestIdentity("name"))


async def test_nobody_in_the_guest_answers(double: GuestDouble, tmp_path: Path) -> None:
    double.silent = True
    for socket in (double.socket, tmp_path / "none.sock", tmp_path / "no folder" / "v.sock"):
        with pytest.raises(GuestAgentMissing) as missing:
            await guest.health(socket)
        assert missing.value.suggestion


def entry(line: str) -> bytes:
    return Frame(RESULT, encode_fields([("entry", line)])).encode()


NONSENSE = [
    b"",
    b"R",
    b"R\x00\x00\x00\x05abc",
    b"R\xff\xff\xff\xff",
    b"Z\x00\x00\x00\x00",
    b"R\x00\x00\x00\x04=abc",
    b"C\x00\x00\x00\x00",
    Frame(FAILED, b"=").encode(),
    Frame(FAILED, b"").encode(),
    Frame(FAILED, b"code=\xff\xfe\x00message=" + b"x" * 60_000).encode(),
    Frame(RESULT, encode_fields([("version", "one")])).encode(),
    Frame(RESULT, encode_fields([("uptime_s", "1e999x"), ("addr", "no commas")])).encode(),
    Frame(RESULT, encode_fields([("mode", "9999"), ("size", "-1"), ("addr", "x")])).encode(),
    Frame(RESULT, encode_fields([("size", "9" * 6000), ("addr", "x")])).encode(),
    entry("f,644,1,../../etc/passwd"),
    entry("f,644,1,.."),
    entry("f,644,1,"),
    entry("q,644,1,name"),
    entry("f,648,1,name"),
    entry("f,644"),
]


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda answer: repr(answer[:30]))
async def test_a_hostile_guest_is_a_guest_fault_and_nothing_worse(
    double: GuestDouble, answer: bytes
) -> None:
    double.answers = [answer, answer, answer]
    if b"entry" not in answer:
        with pytest.raises(NexusError) as refused:
            await guest.health(double.socket)
        assert refused.value.code == "guest_fault"
    with pytest.raises(NexusError) as refused:
        await guest.list_directory(double.socket, "/")
    assert refused.value.code == "guest_fault"
    with pytest.raises(NexusError) as refused:
        await run(double, "true")
    assert refused.value.code == "guest_fault"
