"""What can be asked of the agent inside a guest: one function an operation (docs/guest-agent.md).

Each takes the VM's vsock socket and raises

- ``GuestAgentMissing`` when nobody in the guest answers,
- ``GuestFault`` with the guest's words when it refuses, breaks off or talks nonsense,
- ``NotFound`` when a file is not there,
- ``TimedOut`` when an answer does not come in time.
"""

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import get_args

import anyio

from nexus.agent.guest_channel import Channel, nonsense, open_channel
from nexus.agent.guest_frames import (
    END,
    ERROR_OUTPUT,
    EXIT,
    OUTPUT,
    RESULT,
    SIGNAL,
    WINDOW,
    BadFrame,
    Fields,
    Frame,
    decode_fields,
)
from nexus.agent.guest_identity import ENTROPY_BYTES, GuestIdentity, request
from nexus.api.errors import GuestFault, NotFound, TimedOut
from nexus.api.guest import (
    ExecExit,
    ExecStart,
    FileKind,
    GuestAddress,
    GuestEntry,
    GuestFile,
    GuestInfo,
)

ANSWER_TIMEOUT_S = 20.0
"""For questions that need no work. A paused guest does not answer."""
STALL_TIMEOUT_S = 60.0
"""How long a file's transfer may stand still."""
MAX_ENTRIES = 100_000
TERM = "xterm-256color"

_KINDS: dict[str, FileKind] = {"f": "file", "d": "dir", "l": "link", "o": "other"}


async def health(socket: Path) -> GuestInfo:
    """How the guest says it is."""
    said = await _ask(socket, [("op", "health")])
    values = dict(said)
    with _understood():
        return GuestInfo(
            version=int(values.get("version", "0")),
            hostname=values.get("hostname", ""),
            uptime_s=float(values.get("uptime_s", "0")),
            ready=values.get("ready") == "1",
            addresses=[_address(value) for key, value in said if key == "addr"],
        )


async def identify(socket: Path, identity: GuestIdentity) -> None:
    """Makes a guest that was loaded from a snapshot somebody of its own; twice is once.

    It also gets fresh entropy, and the present time where its clock is off. When this returns the
    guest has its addresses and has told its neighbours. A ``GuestFault`` whose message begins with
    ``unknown-op`` is an agent that is too old to know how; the guest is then who it was.
    """
    async with open_channel(socket) as channel:
        entropy = os.urandom(ENTROPY_BYTES)
        # The time is the last to be looked up: it passes while a connection is made.
        time_ms = time.time_ns() // 1_000_000
        await channel.request(request(identity, entropy=entropy, time_ms=time_ms))
        try:
            said = _fields(await _answer(channel))
        except GuestFault as error:
            if (error.fault_message or "").startswith("unknown-op:"):
                raise _too_old(error) from error
            raise
    if dict(said).get("ok") != "1":
        raise nonsense("an identity that was neither taken nor refused")


def _too_old(error: GuestFault) -> GuestFault:
    return GuestFault(
        "the guest's agent is too old to take an identity of its own",
        fault_message=error.fault_message,
        suggestion="build the image again and take the snapshot anew; until then a boot from the "
        "disk gives the guest its name and addresses: nexus reboot NAME",
    )


async def stat(socket: Path, path: str) -> GuestFile:
    """What is at a path; a link is not followed."""
    with _missing_is_not_found(path):
        return _file(await _ask(socket, [("op", "stat"), ("path", path)]))


async def make_directory(socket: Path, path: str, mode: int) -> None:
    """Makes a directory whose parent exists."""
    with _missing_is_not_found(path):
        await _ask(socket, [("op", "mkdir"), ("path", path), ("mode", f"{mode:o}")])


async def list_directory(socket: Path, path: str) -> list[GuestEntry]:
    """All entries of a directory, in the guest's order."""
    entries: list[GuestEntry] = []
    async with open_channel(socket) as channel:
        await channel.request([("op", "list"), ("path", path)])
        with _missing_is_not_found(path):
            while (frame := await _answer(channel)).kind != END:
                entries += (_entry(value) for key, value in _fields(frame) if key == "entry")
                if len(entries) > MAX_ENTRIES:
                    raise nonsense(f"a directory of more than {MAX_ENTRIES} entries")
    return entries


async def put(socket: Path, path: str, mode: int, content: AsyncIterator[bytes]) -> int:
    """Writes a file as it comes in and replaces the old one when it is whole.

    Returns its size. Cut off before the end, the old file stays as it was.
    """
    fields = [("op", "put"), ("path", path), ("mode", f"{mode:o}")]
    async with open_channel(socket) as channel:
        await channel.request(fields)
        with _missing_is_not_found(path):
            said = await _upload(channel, content)
    with _understood():
        return int(dict(said).get("bytes", "0"))


async def _upload(channel: Channel, content: AsyncIterator[bytes]) -> Fields:
    try:
        async for chunk in content:
            with _in_time(STALL_TIMEOUT_S):
                await channel.send_input(chunk)
        await channel.send(Frame(END))
    except GuestFault:
        # A guest that refuses says why and closes; what it said is still to be read.
        pass
    with _in_time(STALL_TIMEOUT_S):
        return _fields(await channel.receive())


@asynccontextmanager
async def get(socket: Path, path: str) -> AsyncIterator[tuple[GuestFile, AsyncIterator[bytes]]]:
    """A file's facts and its content as it is read; links are followed by the guest."""
    async with open_channel(socket) as channel:
        await channel.request([("op", "get"), ("path", path)])
        with _missing_is_not_found(path):
            found = _file(_fields(await _answer(channel)))
        yield found, _content(channel)


async def _content(channel: Channel) -> AsyncIterator[bytes]:
    while True:
        with _in_time(STALL_TIMEOUT_S):
            frame = await channel.receive()
        if frame.kind == END:
            return
        if frame.kind != OUTPUT:
            raise nonsense(f"a frame {frame.kind!r} in a file's content")
        yield frame.payload


class Process:
    """A program that runs in a guest. One task may send while another iterates over it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def send(self, data: bytes) -> None:
        """Gives the program input; waits while it does not read."""
        await self._channel.send_input(data)

    async def end_input(self) -> None:
        await self._channel.send(Frame(END))

    async def resize(self, rows: int, cols: int) -> None:
        window = rows.to_bytes(2, "big") + cols.to_bytes(2, "big")
        await self._channel.send(Frame(WINDOW, window))

    async def signal(self, number: int) -> None:
        await self._channel.send(Frame(SIGNAL, bytes([number])))

    async def __aiter__(self) -> AsyncIterator[tuple[bytes, bytes] | ExecExit]:
        """Pieces of output, each with ``OUTPUT`` or ``ERROR_OUTPUT``; at last how it ended."""
        while True:
            frame = await self._channel.receive()
            if frame.kind == EXIT and len(frame.payload) == 1:
                yield ExecExit(exit_code=frame.payload[0])
                return
            if frame.kind not in (OUTPUT, ERROR_OUTPUT):
                raise nonsense(f"a frame {frame.kind!r} from a program")
            yield frame.kind, frame.payload


@asynccontextmanager
async def run(socket: Path, start: ExecStart) -> AsyncIterator[Process]:
    """Begins a program; it is ended when the block is left before it has ended by itself."""
    fields = [("op", "exec"), *(("arg", argument) for argument in start.argv)]
    env = dict(start.env)
    if start.tty:
        env.setdefault("TERM", TERM)
        fields += [("tty", "1"), ("rows", str(start.rows)), ("cols", str(start.cols))]
    fields += [("env", f"{name}={value}") for name, value in env.items()]
    fields += [(key, value) for key, value in (("cwd", start.cwd), ("user", start.user)) if value]
    async with open_channel(socket) as channel:
        await channel.request(fields)
        yield Process(channel)


async def _ask(socket: Path, fields: Fields) -> Fields:
    async with open_channel(socket) as channel:
        await channel.request(fields)
        return _fields(await _answer(channel))


async def _answer(channel: Channel) -> Frame:
    with _in_time(ANSWER_TIMEOUT_S):
        return await channel.receive()


def _fields(frame: Frame) -> Fields:
    if frame.kind != RESULT:
        raise nonsense(f"a frame {frame.kind!r} instead of an answer")
    try:
        return decode_fields(frame.payload)
    except BadFrame as error:
        raise nonsense(str(error)) from error


def _file(fields: Fields) -> GuestFile:
    values = dict(fields)
    kind: FileKind = next((k for k in get_args(FileKind) if k == values.get("kind")), "other")
    with _understood():
        return GuestFile(
            kind=kind,
            mode=int(values.get("mode", "0"), 8),
            size_bytes=int(values.get("size", "0")),
            target=values.get("target"),
        )


def _entry(value: str) -> GuestEntry:
    with _understood():
        kind, mode, size, name = value.split(",", 3)
        if not name or "/" in name or name in (".", ".."):
            raise ValueError(f"{name[:64]!r} is not the name of an entry")
        return GuestEntry(name=name, kind=_KINDS[kind], mode=int(mode, 8), size_bytes=int(size))


def _address(value: str) -> GuestAddress:
    iface, mac, ip = value.split(",", 2)
    return GuestAddress(iface=iface, mac=mac, ip=ip)


@contextmanager
def _understood() -> Iterator[None]:
    """What does not parse is the guest's fault."""
    try:
        yield
    except (ValueError, KeyError) as error:
        raise nonsense(f"{type(error).__name__}: {error}") from error


@contextmanager
def _missing_is_not_found(path: str) -> Iterator[None]:
    try:
        yield
    except GuestFault as error:
        if error.fault_message is None or not error.fault_message.startswith("ENOENT:"):
            raise
        raise NotFound(
            f"the guest has no {path}",
            suggestion=error.suggestion,
            fault_message=error.fault_message,
        ) from error


@contextmanager
def _in_time(limit_s: float) -> Iterator[None]:
    try:
        with anyio.fail_after(limit_s):
            yield
    except TimeoutError as error:
        raise TimedOut(
            f"the guest did not answer within {limit_s:.0f} s",
            suggestion="see whether it still runs: nexus show NAME, nexus logs NAME",
        ) from error
