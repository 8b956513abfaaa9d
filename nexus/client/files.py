"""A file in a guest as it is read, sync and async."""

from collections.abc import AsyncIterator, Iterator

import httpx

from nexus.client.errors import not_reachable


class RemoteFile:
    """A file in a guest: ``mode``, ``size_bytes`` as the guest said, and its content once."""

    def __init__(self, url: str, response: httpx.Response) -> None:
        self._url = url
        self._response = response
        self.mode, self.size_bytes = _facts(response)

    def __iter__(self) -> Iterator[bytes]:
        """The content, piece by piece. Raises NotReachable when it breaks off before its end."""
        try:
            yield from self._response.iter_raw()
        except httpx.TransportError as error:
            raise not_reachable(self._url, error) from error

    def read(self) -> bytes:
        """The whole content."""
        return b"".join(self)


class AsyncRemoteFile:
    """A file in a guest: ``mode``, ``size_bytes`` as the guest said, and its content once."""

    def __init__(self, url: str, response: httpx.Response) -> None:
        self._url = url
        self._response = response
        self.mode, self.size_bytes = _facts(response)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The content, piece by piece. Raises NotReachable when it breaks off before its end."""
        try:
            async for chunk in self._response.aiter_raw():
                yield chunk
        except httpx.TransportError as error:
            raise not_reachable(self._url, error) from error

    async def read(self) -> bytes:
        """The whole content."""
        return b"".join([chunk async for chunk in self])


def _facts(response: httpx.Response) -> tuple[int, int]:
    mode = response.headers.get("x-nexus-file-mode", "0644")
    size = response.headers.get("x-nexus-file-size", "0")
    return int(mode, 8), int(size)
