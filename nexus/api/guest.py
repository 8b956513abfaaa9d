"""What goes into a running guest and comes out of it: programs, files, and what it says of itself.

docs/exec.md describes the stream that carries a program's input and output.
"""

import base64
import binascii
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from nexus.api.common import Wire
from nexus.api.errors import ErrorBody

MAX_OUTPUT_BYTES = 1 << 20
"""How much of each of stdout and stderr ``POST …/exec`` keeps."""
MAX_UPLOAD_BYTES = 16 << 30
"""The largest file that can be sent into a guest."""
MAX_MESSAGE_BYTES = 1 << 20
"""The largest message of an exec stream, either way."""

STDIN, STDOUT, STDERR = 0, 1, 2
"""The first byte of each binary message of an exec stream."""

_TEXT = r"^[^\x00]*$"

Argument = Annotated[str, StringConstraints(pattern=_TEXT, max_length=32768)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=256)]
GuestPath = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=4096)]
"""An absolute path inside a guest; it never names anything on a host."""
GuestUser = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$")]
"""A user's name or number inside a guest."""
FileMode = Annotated[int, Field(ge=0, le=0o7777)]
Size = Annotated[int, Field(ge=0, lt=2**63)]
Side = Annotated[int, Field(ge=1, le=65535)]
"""Rows or columns of a terminal."""

FileKind = Literal["file", "dir", "link", "other"]
Encoding = Literal["text", "base64"]


class Program(Wire):
    """A program to run in a guest, without a shell."""

    argv: Annotated[list[Argument], Field(min_length=1, max_length=4096)]
    """The first is looked up on the guest's PATH unless it holds a slash."""
    env: Annotated[dict[EnvName, Argument], Field(max_length=256)] = Field(default_factory=dict)
    cwd: GuestPath | None = None
    """The user's home by default."""
    user: GuestUser | None = None
    """root by default."""

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if not self.argv[0]:
            raise ValueError("argv: the program's name is empty")
        return self


class ExecStart(Program):
    """The first message of an exec stream."""

    tty: bool = False
    """Whether the program gets a terminal: one output, line editing, signals from keys."""
    rows: Side = 24
    cols: Side = 80


class ExecRequest(Program):
    """A program that is run to its end in one request."""

    stdin: str | None = None
    """All of its input; none by default."""
    encoding: Encoding = "text"
    """Of ``stdin`` and of the answer. Text is UTF-8, what is not becomes U+FFFD."""
    timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 60.0
    """After so long the program is ended, and the answer is 504."""

    @model_validator(mode="after")
    def _stdin_is_readable(self) -> Self:
        self.input()
        return self

    def input(self) -> bytes:
        """The program's input. Raises ValueError when it is not base64 as announced."""
        text = self.stdin or ""
        if self.encoding == "text":
            return text.encode("utf-8", "strict")
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"stdin is not base64: {error}") from None


class ExecResult(Wire):
    """How a program ended, and the beginning of what it wrote."""

    exit_code: int
    """0 to 255; a signal's number and 128 when one ended it."""
    stdout: str
    stderr: str
    truncated: bool
    """Whether more was written than the first ``MAX_OUTPUT_BYTES`` of each."""
    encoding: Encoding

    @classmethod
    def of(
        cls, exit_code: int, stdout: bytes, stderr: bytes, *, truncated: bool, encoding: Encoding
    ) -> "ExecResult":
        """From the bytes that were written."""

        def shown(data: bytes) -> str:
            if encoding == "base64":
                return base64.b64encode(data).decode()
            return data.decode("utf-8", "replace")

        return cls(
            exit_code=exit_code,
            stdout=shown(stdout),
            stderr=shown(stderr),
            truncated=truncated,
            encoding=encoding,
        )


class ExecStdinEnd(Wire):
    """Control message to the program: there is no more input."""

    type: Literal["stdin_end"] = "stdin_end"


class ExecResize(Wire):
    """Control message to the program: its terminal has another size."""

    type: Literal["resize"] = "resize"
    rows: Side
    cols: Side


class ExecSignal(Wire):
    """Control message to the program: a signal, by its number."""

    type: Literal["signal"] = "signal"
    signal: Annotated[int, Field(ge=1, le=64)]


ExecControl = Annotated[ExecStdinEnd | ExecResize | ExecSignal, Field(discriminator="type")]


class ExecExit(Wire):
    """The last message of a stream whose program ran to its end."""

    type: Literal["exit"] = "exit"
    exit_code: int


class ExecFailed(Wire):
    """The last message of a stream whose program could not be run, or not to its end."""

    type: Literal["error"] = "error"
    error: ErrorBody


ExecEnd = Annotated[ExecExit | ExecFailed, Field(discriminator="type")]


class GuestAddress(Wire):
    """One address of one of the guest's interfaces, as the guest says."""

    iface: str
    mac: str
    ip: str
    """With its prefix length: ``10.77.0.5/20``."""


class GuestInfo(Wire):
    """What the guest's agent says of the guest."""

    version: int
    hostname: str
    uptime_s: float
    ready: bool
    addresses: list[GuestAddress]


class GuestFile(Wire):
    """A file, directory or link in a guest."""

    kind: FileKind
    mode: FileMode
    size_bytes: Size
    target: str | None = None
    """Where a link leads."""


class GuestEntry(Wire):
    """One entry of a directory in a guest."""

    name: str
    kind: FileKind
    mode: FileMode
    size_bytes: Size


class Written(Wire):
    """A file that was sent into a guest."""

    path: str
    size_bytes: Size
