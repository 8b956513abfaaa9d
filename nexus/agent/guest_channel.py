"""One connection to the agent inside a guest, over the unix socket of its VM's vsock device.

The handshake is Firecracker's: ``CONNECT port``, answered ``OK number``; nexus-qemu serves the
same (docs/guest-agent.md). One connection carries one operation.
"""

import asyncio
import re
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from nexus.agent.guest_frames import (
    FAILED,
    INPUT,
    MAX_PAYLOAD_BYTES,
    REQUEST,
    BadFrame,
    Decoder,
    Fields,
    Frame,
    decode_fields,
    encode_fields,
    split,
)
from nexus.api.errors import GuestAgentMissing, GuestFault, NexusError, ValidationFailed
from nexus.vmm.wire import connectable

PORT = 1024
CONNECT_TIMEOUT_S = 10.0
"""A guest that has an agent accepts within a fraction of it, also under emulation."""
MAX_GREETING_BYTES = 32
_READ_BYTES = 65536


class Channel:
    """An open connection: frames both ways. One task may send while another receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._ready: deque[Frame] = deque()

    async def request(self, fields: Fields) -> None:
        """Says what is to be done. Raises ValidationFailed when that is too long for a frame."""
        payload = encode_fields(fields)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValidationFailed(
                f"arguments and environment take {len(payload)} bytes; {MAX_PAYLOAD_BYTES} is most",
                suggestion="send long input through stdin or a file",
            )
        await self.send(Frame(REQUEST, payload))

    async def send(self, frame: Frame) -> None:
        """Waits while the guest does not read. Raises GuestFault when the guest is gone."""
        try:
            await self._loop.sock_sendall(self._connection, frame.encode())
        except OSError as error:
            raise _gone() from error

    async def send_input(self, data: bytes) -> None:
        """Bytes of any length as input."""
        for frame in split(INPUT, data):
            await self.send(frame)

    async def receive(self) -> Frame:
        """The next frame. Raises GuestFault when the guest reports a failure or goes away."""
        while not self._ready:
            try:
                data = await self._loop.sock_recv(self._connection, _READ_BYTES)
                self._ready.extend(self._decoder.feed(data))
            except BadFrame as error:
                raise nonsense(str(error)) from error
            except OSError as error:
                raise _gone() from error
            if not data:
                raise _gone()
        frame = self._ready.popleft()
        if frame.kind == FAILED:
            raise failure(frame.payload)
        return frame


@asynccontextmanager
async def open_channel(path: Path) -> AsyncIterator[Channel]:
    """A connection to the guest's agent. Closing it ends what the guest does for it.

    Raises GuestAgentMissing when nobody in the guest answers.
    """
    # A bare socket: what a guest said before it closed can be read from it even when sending
    # failed, which streams of asyncio do not grant.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            with anyio.fail_after(CONNECT_TIMEOUT_S), connectable(path) as name:
                await asyncio.get_running_loop().sock_connect(connection, name)
                await _shake_hands(connection)
        except (TimeoutError, OSError, ValueError) as error:
            raise nobody_answers() from error
        yield Channel(connection)


def nobody_answers() -> GuestAgentMissing:
    return GuestAgentMissing(
        "no guest agent answers in this VM",
        suggestion="use an image with Nexus' guest agent, such as busybox; "
        "or wait until it has booted: nexus logs NAME",
    )


async def _shake_hands(connection: socket.socket) -> None:
    """Asks for the agent's port. Raises ValueError when something else answers, or nobody."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, f"CONNECT {PORT}\n".encode())
    greeting = b""
    # Byte by byte: what follows the line belongs to the channel.
    while not greeting.endswith(b"\n") and len(greeting) < MAX_GREETING_BYTES:
        byte = await loop.sock_recv(connection, 1)
        if not byte:
            break
        greeting += byte
    if not re.fullmatch(rb"OK \d{1,10}\n", greeting):
        raise ValueError(f"{greeting!r} instead of OK")


def failure(payload: bytes) -> NexusError:
    """The guest's own report of a failure, as an error with a cure."""
    try:
        said = dict(decode_fields(payload))
    except BadFrame as error:
        return nonsense(str(error))
    code, message = said.get("code", "EIO")[:64], said.get("message", "it failed")[:500]
    return GuestFault(
        f"the guest refused: {message}",
        fault_message=f"{code}: {message}",
        suggestion=_CURES.get(code),
    )


_CURES = {
    "ENOENT": "look what is there: nexus exec NAME -- ls",
    "EACCES": "choose another user: nexus exec --user root NAME -- …",
    "EPERM": "choose another user: nexus exec --user root NAME -- …",
    "ENOSPC": "make room in the guest: nexus exec NAME -- df",
    "EISDIR": "give the path of a file, or nexus cp -r for a directory",
    "EROFS": "the guest mounted it read-only; choose another directory",
}


def nonsense(what: str) -> GuestFault:
    """An answer that no guest agent of this version gives."""
    return GuestFault(
        "the guest's agent gives an answer that is not understood",
        fault_message=f"EPROTO: {what[:300]}",
        suggestion="build the image again, so that its agent has the version of this host",
    )


def _gone() -> GuestFault:
    return GuestFault(
        "the guest's agent went away",
        fault_message="ECONNRESET: the channel was closed",
        suggestion="see whether the VM still runs: nexus show NAME",
    )
