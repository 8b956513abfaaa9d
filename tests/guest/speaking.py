"""Speaking with a guest's agent: the frames of docs/guest-agent.md, for tests."""

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_HEADER = struct.Struct(">cI")
DEADLINE_S = 60.0

Frame = tuple[bytes, bytes]
Fields = list[tuple[str, str]]


class NoAgent(Exception):
    """The connection was closed without an OK."""


class Failed(Exception):
    """The agent answered X."""

    def __init__(self, fields: Fields) -> None:
        said = dict(fields)
        super().__init__(said)
        self.code = said["code"]
        self.message = said["message"]


@dataclass
class Done:
    """How an exec ended."""

    code: int
    out: bytes = b""
    err: bytes = b""


@dataclass
class Talk:
    """One connection with an agent. A context manager: it closes it."""

    sock: socket.socket
    _buffer: bytearray = field(default_factory=bytearray)

    def __enter__(self) -> "Talk":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        self.sock.sendall(_HEADER.pack(kind, len(payload)) + payload)

    def ask(self, *fields: tuple[str, object]) -> None:
        self.send(b"Q", b"\0".join(f"{key}={value}".encode() for key, value in fields))

    def receive(self) -> Frame:
        """The next frame; EOFError when there is none any more."""
        kind, length = _HEADER.unpack(self._exactly(_HEADER.size))
        return kind, self._exactly(length)

    def answer(self) -> Fields:
        """The fields of an R; raises Failed for an X."""
        kind, payload = self.receive()
        parts = [part.partition("=") for part in payload.decode().split("\0") if part]
        fields = [(key, value) for key, _, value in parts]
        if kind == b"X":
            raise Failed(fields)
        assert kind == b"R", (kind, payload)
        return fields

    def until(self, kind: bytes, text: bytes) -> bytes:
        """Collects frames of this kind until what they say holds ``text``."""
        said = b""
        while text not in said:
            got, payload = self.receive()
            assert got == kind, (got, payload, said)
            said += payload
        return said

    def finish(self) -> Done:
        """All output up to the exit of a program; raises Failed."""
        said = {b"O": bytearray(), b"T": bytearray()}
        while True:
            kind, payload = self.receive()
            if kind == b"C":
                return Done(payload[0], bytes(said[b"O"]), bytes(said[b"T"]))
            if kind == b"X":
                raise Failed([tuple(p.split("=", 1)) for p in payload.decode().split("\0")])  # type: ignore[misc]
            said[kind] += payload

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._buffer += data
        got = bytes(self._buffer[:size])
        del self._buffer[:size]
        return got


def connect(path: Path, port: int = 1024) -> Talk:
    """Firecracker's handshake at a vsock's unix socket; raises NoAgent."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_S)
    try:
        sock.connect(str(path))
        sock.sendall(b"CONNECT %d\n" % port)
        line = b""
        while not line.endswith(b"\n"):
            byte = sock.recv(1)
            if not byte:
                raise NoAgent
            line += byte
    except (ConnectionError, NoAgent) as error:
        sock.close()
        raise NoAgent from error
    assert line.startswith(b"OK "), line
    return Talk(sock)


def run(talk: Talk, *arguments: str, stdin: bytes = b"", **options: object) -> Done:
    """A program without a terminal, its input given at once and then ended."""
    words = [("arg", argument) for argument in arguments]
    with talk:
        talk.ask(("op", "exec"), *words, *options.items())
        for at in range(0, len(stdin), 65536):
            talk.send(b"I", stdin[at : at + 65536])
        talk.send(b"E")
        return talk.finish()


def put(talk: Talk, path: str, pieces: Iterable[bytes], mode: str = "644") -> Fields:
    with talk:
        talk.ask(("op", "put"), ("path", path), ("mode", mode))
        for piece in pieces:
            talk.send(b"I", piece)
        talk.send(b"E")
        return talk.answer()


def get(talk: Talk, path: str) -> tuple[Fields, bytes]:
    with talk:
        talk.ask(("op", "get"), ("path", path))
        fields = talk.answer()
        content = bytearray()
        while (frame := talk.receive()) != (b"E", b""):
            assert frame[0] == b"O", frame
            content += frame[1]
        return fields, bytes(content)


def ask(talk: Talk, op: str, **fields: object) -> Fields:
    """An operation that answers with one R."""
    with talk:
        talk.ask(("op", op), *fields.items())
        return talk.answer()


def identify(talk: Talk, *fields: tuple[str, object]) -> Fields:
    """The operation whose fields repeat; raises Failed."""
    with talk:
        talk.ask(("op", "identify"), *fields)
        return talk.answer()


def listing(talk: Talk, path: str) -> list[str]:
    with talk:
        talk.ask(("op", "list"), ("path", path))
        entries: list[str] = []
        while True:
            kind, payload = talk.receive()
            if kind == b"E":
                return sorted(entries)
            assert kind == b"R", (kind, payload)
            entries += [e.removeprefix("entry=") for e in payload.decode().split("\0")]
