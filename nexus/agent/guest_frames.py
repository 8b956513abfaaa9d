"""The frames of the channel into a guest, as pure functions (docs/guest-agent.md).

One byte of kind, four bytes of length (big-endian), the payload. Requests and answers are fields
``key=value``, separated by NUL; keys may repeat.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_PAYLOAD_BYTES = 65536
_HEADER = struct.Struct(">cI")

REQUEST = b"Q"
INPUT = b"I"
END = b"E"
WINDOW = b"W"
SIGNAL = b"S"
"""What the host sends."""

OUTPUT = b"O"
ERROR_OUTPUT = b"T"
RESULT = b"R"
EXIT = b"C"
FAILED = b"X"
"""What the guest sends; it ends files with ``END`` too."""

Fields = list[tuple[str, str]]


class BadFrame(Exception):
    """The other side does not speak this protocol."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; ``kind`` is a single byte."""

    kind: bytes
    payload: bytes = b""

    def encode(self) -> bytes:
        """The frame on the wire. Raises ValueError when the payload is too large."""
        if len(self.payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a payload of {len(self.payload)} bytes")
        return _HEADER.pack(self.kind, len(self.payload)) + self.payload


class Decoder:
    """Makes frames of bytes as they come. Holds at most one frame that is not complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that ``data`` completes. Raises BadFrame at a length beyond the bound."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= _HEADER.size:
                kind, length = _HEADER.unpack_from(buffer, at)
                if length > MAX_PAYLOAD_BYTES:
                    raise BadFrame(f"a frame of {length} bytes")
                if len(buffer) - at < _HEADER.size + length:
                    return
                begin, at = at + _HEADER.size, at + _HEADER.size + length
                yield Frame(kind, bytes(buffer[begin:at]))
        finally:
            del buffer[:at]

    @property
    def empty(self) -> bool:
        """Whether nothing of a further frame has come."""
        return not self._buffer


def split(kind: bytes, data: bytes) -> Iterator[Frame]:
    """Bytes of any length as frames; none for no bytes."""
    for at in range(0, len(data), MAX_PAYLOAD_BYTES):
        yield Frame(kind, data[at : at + MAX_PAYLOAD_BYTES])


def encode_fields(fields: Iterable[tuple[str, str]]) -> bytes:
    """A payload of fields. Raises ValueError for a NUL, or an ``=`` in a key."""
    parts = []
    for key, value in fields:
        if not key or "=" in key or "\x00" in key + value:
            raise ValueError(f"not a field: {key[:64]!r}")
        parts.append(f"{key}={value}".encode())
    return b"\x00".join(parts)


def decode_fields(payload: bytes) -> Fields:
    """The fields of a payload; text that is not UTF-8 is shown with U+FFFD.

    Raises BadFrame for a field without a key.
    """
    fields = []
    for part in payload.split(b"\x00"):
        if not part:
            continue
        key, equals, value = part.decode("utf-8", "replace").partition("=")
        if not key or not equals:
            raise BadFrame(f"a field without a key: {part[:64]!r}")
        fields.append((key, value))
    return fields
