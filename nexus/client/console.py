"""A VM's serial console: bytes both ways over a WebSocket, sync and async."""

import contextlib
from collections.abc import AsyncIterator, Iterator

from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from nexus.client.calls.vms import console_path
from nexus.client.errors import ConflictError, DeniedError, NexusApiError, NotReachable

OPEN_TIMEOUT_S = 10.0
_FAILURES = (InvalidHandshake, OSError, TimeoutError)


class Console:
    """An open console. Iterate over what the guest writes; ``send`` is typing.

    One thread may send while another iterates.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def send(self, data: bytes) -> None:
        """Types ``data``. Raises NotReachable when the console has ended."""
        try:
            self._connection.send(data)
        except ConnectionClosed as error:
            raise _broken(error) from error

    def __iter__(self) -> Iterator[bytes]:
        """What the guest writes, until the other side ends it; NotReachable when it breaks off."""
        try:
            for data in self._connection:
                yield data if isinstance(data, bytes) else data.encode()
        except ConnectionClosed as error:
            raise _broken(error) from error

    def close(self) -> None:
        self._connection.close()


class AsyncConsole:
    """An open console. Iterate over what the guest writes; ``send`` is typing."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def send(self, data: bytes) -> None:
        """Types ``data``. Raises NotReachable when the console has ended."""
        try:
            await self._connection.send(data)
        except ConnectionClosed as error:
            raise _broken(error) from error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """What the guest writes, until the other side ends it; NotReachable when it breaks off."""
        try:
            async for data in self._connection:
                yield data if isinstance(data, bytes) else data.encode()
        except ConnectionClosed as error:
            raise _broken(error) from error


@contextlib.contextmanager
def open_console(url: str, token: str, ref: str) -> Iterator[Console]:
    """Connects to the serial console of a VM. Raises NexusApiError."""
    try:
        connection = connect(
            _address(url, ref),
            additional_headers=_headers(token),
            open_timeout=OPEN_TIMEOUT_S,
            compression=None,
            proxy=None,
            max_size=None,
        )
    except _FAILURES as error:
        raise _refused(url, ref, error) from error
    with connection:
        yield Console(connection)


@contextlib.asynccontextmanager
async def open_console_async(url: str, token: str, ref: str) -> AsyncIterator[AsyncConsole]:
    """Connects to the serial console of a VM. Raises NexusApiError."""
    try:
        connection = await connect_async(
            _address(url, ref),
            additional_headers=_headers(token),
            open_timeout=OPEN_TIMEOUT_S,
            compression=None,
            proxy=None,
            max_size=None,
        )
    except _FAILURES as error:
        raise _refused(url, ref, error) from error
    async with connection:
        yield AsyncConsole(connection)


def _address(url: str, ref: str) -> str:
    return "ws" + url.rstrip("/").removeprefix("http") + console_path(ref)


def _headers(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def _broken(error: ConnectionClosed) -> NotReachable:
    said = error.rcvd.reason if error.rcvd is not None else ""
    return NotReachable(0, "host_unreachable", said or f"the console broke off: {error}")


def _refused(url: str, ref: str, error: Exception) -> NexusApiError:
    """A server that refuses a WebSocket tells little more than a status."""
    status = error.response.status_code if isinstance(error, InvalidStatus) else 0
    if status == 401:
        return DeniedError(status, "unauthenticated", "the token is not accepted")
    if status == 403:
        return ConflictError(
            status,
            "invalid_state",
            f"the console of {ref} is refused: the VM has none now, or the token may not use it",
            suggestion=f"nexus show {ref}",
        )
    return NotReachable(
        status,
        "host_unreachable",
        f"no console from {url}: {str(error) or type(error).__name__}",
        suggestion=f"nexus show {ref}",
    )
