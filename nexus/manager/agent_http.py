"""HTTP to an agent: a pool of kept-alive connections over a unix socket or TCP.

httpcore without httpx on top of it, which halves what a request costs, and on asyncio's own
transports: anyio's unix sockets let a read that is cancelled just as bytes arrive surface as an
error of the event loop (anyio 4.16, ``_wait_until_readable``).
"""

import asyncio
import contextlib
import importlib.util
import ssl
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpcore

from nexus.api.errors import HostUnreachable

if importlib.util.find_spec("sniffio") is None:
    # httpcore looks for it at each request, and Python does not remember what it did not find:
    # that was a tenth of what a create costs the manager.
    sys.modules["sniffio"] = None  # type: ignore[assignment]

CONNECT_TIMEOUT_S = 2.0
KEPT_ALIVE = 64
_LARGEST_READ = 1 << 16

FAILURES = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ConnectionNotAvailable,
)
"""What a request raises when there was no whole answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An agent's answer, read to its end."""

    status: int
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case names."""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class AgentHttp:
    """Requests to one agent, ``unix:/path`` or ``http://host:port``. Raises ``FAILURES``."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._base = "http://agent" if socket else url
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=None,
            max_keepalive_connections=KEPT_ALIVE,
            keepalive_expiry=30.0,
            uds=socket,
            network_backend=_AsyncioBackend(),
        )

    async def ask(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request and its whole answer. ``timeout_s`` bounds each silence of the agent."""
        async with self.stream(
            method,
            path,
            silence_s=timeout_s,
            content=content,
            headers=headers,
            params=params,
        ) as response:
            body = await response.aread()
            return Answer(response.status, body, _by_name(response.headers))

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        silence_s: float | None,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpcore.Response]:
        """One request whose answer the caller reads: ``async for … in response.aiter_stream()``.

        ``silence_s`` is how long the agent may say nothing; None waits for ever.
        """
        query = f"?{urlencode(params)}" if params else ""
        more = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        timeouts = {
            "connect": CONNECT_TIMEOUT_S,
            "read": silence_s,
            "write": silence_s,
            "pool": CONNECT_TIMEOUT_S,
        }
        async with self._pool.stream(
            method,
            f"{self._base}{path}{query}",
            headers=[*self._headers, *more],
            content=content,
            extensions={"timeout": timeouts},
        ) as response:
            yield response

    async def close(self) -> None:
        await self._pool.aclose()


async def lines(response: httpcore.Response) -> AsyncIterator[bytes]:
    """The lines of an answer as they come, without their ends and without empty ones."""
    rest = b""
    async for chunk in response.aiter_stream():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line:
                yield line
    if rest:
        yield rest


def _by_name(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


class _AsyncioStream(httpcore.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(min(max_bytes, _LARGEST_READ))
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        self._writer.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            await self._writer.start_tls(
                ssl_context, server_hostname=server_hostname, ssl_handshake_timeout=timeout
            )
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            # Asked of an idle connection: the other side has hung up, or spoke unasked.
            return self._reader.at_eof() or self._writer.is_closing()
        if info == "ssl_object":
            return self._writer.get_extra_info("ssl_object")
        return None


class _AsyncioBackend(httpcore.AsyncNetworkBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        local = (local_address, 0) if local_address else None
        try:
            async with asyncio.timeout(timeout):
                return _AsyncioStream(*await asyncio.open_connection(host, port, local_addr=local))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                return _AsyncioStream(*await asyncio.open_unix_connection(path))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def unreachable(url: str, error: Exception) -> HostUnreachable:
    """What a failed request says to its caller."""
    return HostUnreachable(
        f"the agent at {url} does not answer: {error or type(error).__name__}",
        suggestion="see whether it runs: nexus host ls",
    )
