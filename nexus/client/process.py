"""A program in a guest with streams both ways, over a WebSocket, sync and async (docs/exec.md)."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Literal, NamedTuple

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import TypeAdapter, ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from nexus.api.errors import ErrorBody
from nexus.api.guest import (
    MAX_MESSAGE_BYTES,
    STDERR,
    STDIN,
    ExecEnd,
    ExecExit,
    ExecResize,
    ExecSignal,
    ExecStart,
    ExecStdinEnd,
)
from nexus.client.calls.guests import exec_path
from nexus.client.errors import NexusApiError, NotReachable, error_from

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
PIECE_BYTES = 65536
_FAILURES = (InvalidHandshake, OSError, TimeoutError)
_end: TypeAdapter[ExecEnd] = TypeAdapter(ExecEnd)


class Output(NamedTuple):
    """A piece of what a program writes."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class AsyncProcess:
    """A program that runs in a guest. Iterate over its output; after that ``exit_code`` is known.

    One task may send while another iterates. Errors while iterating are NexusApiError: with code
    ``guest_fault`` when the guest could not run it. Sending to a program that has ended does
    nothing.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.exit_code: int | None = None
        """0 to 255, or 128 and a signal's number; None before the end."""

    async def send(self, data: bytes) -> None:
        """Gives it input; waits while it does not read."""
        for at in range(0, len(data), PIECE_BYTES):
            await self._say(_input(data[at : at + PIECE_BYTES]))

    async def end_input(self) -> None:
        """There is no more input."""
        await self._say(ExecStdinEnd().model_dump_json())

    async def resize(self, rows: int, cols: int) -> None:
        """Its terminal has another size."""
        await self._say(ExecResize(rows=rows, cols=cols).model_dump_json())

    async def signal(self, number: int) -> None:
        """Sends a signal to its process group."""
        await self._say(ExecSignal(signal=number).model_dump_json())

    async def __aiter__(self) -> AsyncIterator[Output]:
        """What it writes, until it ends."""
        try:
            async for message in self._connection:
                if isinstance(message, str):
                    self.exit_code = _code(message)
                    return
                if message:
                    yield _output(message)
        except ConnectionClosed as error:
            raise _broken(error) from error
        raise _broken(None)

    async def wait(self) -> int:
        """Throws away what it still writes; returns the exit code."""
        if self.exit_code is None:
            async for _ in self:
                pass
        return self.exit_code or 0

    async def close(self) -> None:
        """Ends the program if it still runs."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_TIMEOUT_S):
            await self._connection.close()
        # Also when something is still waiting to be sent.
        self._connection.transport.abort()

    async def _say(self, message: str | bytes) -> None:
        # How it ended is told to whoever iterates.
        with contextlib.suppress(ConnectionClosed):
            await self._connection.send(message)


class Process:
    """The same as AsyncProcess for threads: one may send while another iterates."""

    # Not on websockets' own sync connection: that one does not receive while a send waits, so
    # that a program which echoes much input would wait for its reader for ever.

    def __init__(self, portal: BlockingPortal, process: AsyncProcess) -> None:
        self._portal = portal
        self._process = process

    @property
    def exit_code(self) -> int | None:
        """0 to 255, or 128 and a signal's number; None before the end."""
        return self._process.exit_code

    def send(self, data: bytes) -> None:
        """Gives it input; waits while it does not read."""
        self._portal.call(self._process.send, data)

    def end_input(self) -> None:
        """There is no more input."""
        self._portal.call(self._process.end_input)

    def resize(self, rows: int, cols: int) -> None:
        """Its terminal has another size."""
        self._portal.call(self._process.resize, rows, cols)

    def signal(self, number: int) -> None:
        """Sends a signal to its process group."""
        self._portal.call(self._process.signal, number)

    def __iter__(self) -> Iterator[Output]:
        """What it writes, until it ends."""
        outputs = aiter(self._process)
        while (output := self._portal.call(_next, outputs)) is not None:
            yield output

    def wait(self) -> int:
        """Throws away what it still writes; returns the exit code."""
        return self._portal.call(self._process.wait)

    def close(self) -> None:
        """Ends the program if it still runs."""
        self._portal.call(self._process.close)


async def _next(outputs: AsyncIterator[Output]) -> Output | None:
    return await anext(outputs, None)


@contextlib.contextmanager
def open_process(url: str, token: str, ref: str, start: ExecStart) -> Iterator[Process]:
    """Runs a program; leaving the block ends it. Raises NexusApiError."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_process_async(url, token, ref, start)) as process,
    ):
        yield Process(portal, process)


@contextlib.asynccontextmanager
async def open_process_async(
    url: str, token: str, ref: str, start: ExecStart
) -> AsyncIterator[AsyncProcess]:
    """Runs a program; leaving the block ends it. Raises NexusApiError."""
    try:
        connection = await connect(
            _address(url, ref),
            additional_headers={"authorization": f"Bearer {token}"},
            open_timeout=OPEN_TIMEOUT_S,
            # A manager that waits for a slow program does not answer pings either.
            ping_timeout=None,
            compression=None,
            proxy=None,
            max_size=MAX_MESSAGE_BYTES,
        )
    except _FAILURES as error:
        raise _refused(url, error) from error
    process = AsyncProcess(connection)
    try:
        await process._say(start.model_dump_json())
        yield process
    finally:
        await process.close()


def _address(url: str, ref: str) -> str:
    return "ws" + url.rstrip("/").removeprefix("http") + exec_path(ref)


def _input(data: bytes) -> bytes:
    return bytes([STDIN]) + data


def _output(message: bytes) -> Output:
    return Output("stderr" if message[0] == STDERR else "stdout", message[1:])


def _code(message: str) -> int:
    """The exit code that a last message tells. Raises NexusApiError when it tells of a failure."""
    try:
        end = _end.validate_json(message)
    except ValidationError as error:
        raise NexusApiError(
            0,
            "internal",
            "the manager says what this version of Nexus does not understand",
            suggestion="check that the manager has the version of this client",
        ) from error
    if isinstance(end, ExecExit):
        return end.exit_code
    raise error_from(end.error)


def _broken(error: ConnectionClosed | None) -> NotReachable:
    why = f": {error}" if error is not None else ""
    return NotReachable(
        0,
        "host_unreachable",
        f"the connection broke before the program's end{why}",
        suggestion="is the manager still running? nexus ls",
    )


def _refused(url: str, error: Exception) -> NexusApiError:
    if isinstance(error, InvalidStatus):
        try:
            return error_from(ErrorBody.model_validate_json(error.response.body or b""))
        except ValidationError:
            pass
    return NotReachable(
        0,
        "host_unreachable",
        f"no program is run by {url}: {str(error) or type(error).__name__}",
        suggestion="is Nexus running? start it with: nexus up",
    )
