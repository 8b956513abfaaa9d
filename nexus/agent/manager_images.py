"""The manager as a place that images come from. Its address and this host's token are settings:
no request can name another."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pydantic import ValidationError

from nexus.agent.errors import FetchFailed
from nexus.api.blobs import BlobMap
from nexus.api.errors import ErrorBody

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 5.0
SILENCE_S = 30.0
"""How long the manager may say nothing."""
CHUNK = 1 << 20
_PATH = "/v1/agent/blobs"


class ManagerImages:
    """Reads contents from one manager. Raises FetchFailed."""

    def __init__(self, base: str, token: str) -> None:
        """``base`` is ``http://``, ``https://`` or ``unix:/path``."""
        import httpx  # Only hosts with a store of their own need it.

        socket = base.removeprefix("unix:") if base.startswith("unix:") else None
        verify = ssl.create_default_context() if base.startswith("https://") else True
        self.base = base
        self._failures = httpx.TransportError
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket, verify=verify),
            base_url="http://manager" if socket else base,
            headers={"authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(CONNECT_TIMEOUT_S, read=SILENCE_S),
            trust_env=False,
        )

    async def map(self, sha256: str) -> BlobMap:
        """Where a content has data."""
        async with self._asked(f"{_PATH}/{sha256}/map", {}) as response:
            content = await response.aread()
        try:
            return BlobMap.model_validate_json(content)
        except ValidationError as error:
            raise FetchFailed(
                f"the manager at {self.base} gives an answer that is not understood",
                suggestion="bring manager and agent to the same version",
            ) from error

    @asynccontextmanager
    async def part(self, sha256: str, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of a content from ``start`` to before ``end``, as they come."""
        wanted = {"range": f"bytes={start}-{end - 1}"}
        async with self._asked(f"{_PATH}/{sha256}", wanted) as response:
            yield response.aiter_bytes(CHUNK)

    async def close(self) -> None:
        await self._http.aclose()

    @asynccontextmanager
    async def _asked(self, path: str, headers: dict[str, str]) -> AsyncIterator["httpx.Response"]:
        try:
            async with self._http.stream("GET", path, headers=headers) as response:
                if response.status_code not in (200, 206):
                    raise self._refusal(response.status_code, await response.aread())
                yield response
        except self._failures as error:
            raise FetchFailed(
                f"the manager at {self.base} does not answer: {error or type(error).__name__}",
                suggestion=f"see whether it answers from this host: curl {self.base}/healthz",
                passing=True,
            ) from error

    def _refusal(self, status: int, content: bytes) -> FetchFailed:
        if status in (401, 403):
            return FetchFailed(
                f"the manager at {self.base} does not accept this host's token",
                suggestion="copy the manager's host.token to NEXUS_HOST_TOKEN_FILE of this host, "
                "and restart the agent",
            )
        try:
            said = ErrorBody.model_validate_json(content)
        except ValidationError:
            said = None
        return FetchFailed(
            said.message if said else f"the manager at {self.base} answers {status}",
            suggestion=(said.suggestion if said else None) or "read the manager's log",
            passing=status >= 500 or status == 429,
        )
