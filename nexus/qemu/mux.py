"""Many streams over one byte pipe: the framing between ``nexus-qemu`` and the guest's agent.

Values in, values out; docs/guest-agent.md has the rules. A frame is a type, a stream's number and a
length, then so many bytes. The pipe outlives what speaks at its ends (a snapshot is loaded in the
middle of a frame, the guest's agent starts anew), so each conversation begins with a SYNC.
"""

import struct
from collections.abc import Iterator

import msgspec

OPEN, ACCEPT, DATA, CREDIT, CLOSE, SYNC = b"OADKCS"

HEADER = struct.Struct(">BIH")
MAX_PAYLOAD = 16 << 10
WINDOW = 64 << 10
"""Bytes of one stream that may be under way in one direction without being acknowledged."""

NONCE_SIZE = 16
_PADDING = bytes(HEADER.size + MAX_PAYLOAD)
_CREDIT = struct.Struct(">I")
_LENGTHS = {
    OPEN: (0, 0),
    ACCEPT: (0, 0),
    DATA: (1, MAX_PAYLOAD),
    CREDIT: (_CREDIT.size, _CREDIT.size),
    CLOSE: (0, 0),
    SYNC: (NONCE_SIZE, NONCE_SIZE),
}


class Garbled(Exception):
    """The pipe holds something that is no frame."""


class Frame(msgspec.Struct, frozen=True):
    """One frame; ``stream`` is 0 for a SYNC."""

    kind: int
    stream: int
    payload: bytes = b""

    @property
    def credit(self) -> int:
        """The bytes that a CREDIT acknowledges."""
        return int(_CREDIT.unpack(self.payload)[0])


def encode(frame: Frame) -> bytes:
    return HEADER.pack(frame.kind, frame.stream, len(frame.payload)) + frame.payload


def credit(stream: int, size: int) -> Frame:
    """Acknowledges ``size`` bytes of a stream."""
    return Frame(CREDIT, stream, _CREDIT.pack(size))


def call(nonce: bytes) -> bytes:
    """Begins a conversation: as many zeros as end any frame the guest may be inside of, then a SYNC
    that it answers with the same nonce."""
    return _PADDING + encode(Frame(SYNC, 0, nonce))


class Reader:
    """Frames out of what arrives, once the SYNC with this nonce has come by."""

    def __init__(self, nonce: bytes) -> None:
        self.synced = False
        self._answer = encode(Frame(SYNC, 0, nonce))
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now; raises Garbled."""
        self._buffer += data
        if not self.synced and not self._find_answer():
            return
        while (frame := self._next()) is not None:
            yield frame

    def _find_answer(self) -> bool:
        """Drops what was under way before the guest answered, however long it is."""
        at = self._buffer.find(self._answer)
        if at < 0:
            del self._buffer[: -len(self._answer)]
            return False
        del self._buffer[: at + len(self._answer)]
        self.synced = True
        return True

    def _next(self) -> Frame | None:
        if len(self._buffer) < HEADER.size:
            return None
        kind, stream, length = HEADER.unpack_from(self._buffer)
        least, most = _LENGTHS.get(kind, (1, 0))
        if not least <= length <= most:
            raise Garbled(f"type {kind}, length {length}")
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return Frame(kind, stream, payload)
