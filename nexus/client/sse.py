"""Server-sent events, as the HTML standard has them ("9.2.6 Interpreting an event stream")."""

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``event`` and ``data`` are empty when only the position moved."""

    event: str
    data: str
    id: str | None
    """The position after it; None as long as the stream has told none."""


class Parser:
    """Makes messages out of bytes, however they are cut into pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that this piece completes."""
        text = self._rest + chunk
        # A CR at the very end may be half of a CR LF.
        held = text[-1:] if text.endswith(b"\r") else b""
        *lines, rest = _LINE_END.split(text[: len(text) - len(held)])
        self._rest = rest + held
        return [message for line in lines if (message := self._line(line.decode(errors="replace")))]

    def _line(self, line: str) -> Message | None:
        if not line:
            message = Message(self._event, "\n".join(self._data), self._id)
            self._event, self._data = "", []
            return message
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        return None
