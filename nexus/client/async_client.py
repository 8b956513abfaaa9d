"""The async client: the same calls as the sync one, awaited."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import anyio
import httpx

from nexus.api.common import Page
from nexus.api.hosts import Host
from nexus.api.images import (
    Image,
    ImageBuild,
    ImageBuildCreate,
    ImageCreate,
    ImageKind,
    ImageRecipe,
)
from nexus.api.vms import LogChunk, LogSource, Vm, VmCreate, VmEvent, VmState, WaitState
from nexus.client import calls
from nexus.client.calls import Call
from nexus.client.connect import find_connection
from nexus.client.errors import NexusApiError, NotReachable, answer_of, error_of, not_reachable
from nexus.client.retries import RETRY_ERRORS, RETRY_STATUSES, backoffs

if TYPE_CHECKING:
    from nexus.client.console import AsyncConsole

T = TypeVar("T")


class AsyncClient:
    """A manager's API. Use as an async context manager, or call ``close``.

    Raises NexusApiError and its subclasses; reads are retried when the connection or the manager
    fails, changes never are.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        """Without arguments: the installation that ``find_connection`` finds."""
        if url is None or token is None:
            found = find_connection(url=url)
            url, token = found.url, token or found.token
        self._url = url
        self._token = token
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, trust_env=False)
        self.vms = Vms(self)
        self.images = Images(self)
        self.hosts = Hosts(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def ready(self) -> bool:
        """Whether the manager serves and has a healthy host."""
        try:
            return await self.send(calls.ready())
        except NexusApiError:
            return False

    async def send(self, call: Call[T]) -> T:
        """Sends one call. Raises NexusApiError."""
        for pause_s in backoffs(call):
            try:
                response = await self._http.request(
                    call.method,
                    call.path,
                    params=call.params(),
                    content=call.content(),
                    headers={"content-type": "application/json"} if call.body else None,
                    timeout=call.timeout_s,
                )
            except httpx.TransportError as error:
                if pause_s is None or not isinstance(error, RETRY_ERRORS):
                    raise not_reachable(self._url, error) from error
            else:
                if response.is_success:
                    return answer_of(call.read, response)
                if pause_s is None or response.status_code not in RETRY_STATUSES:
                    raise error_of(response)
            await anyio.sleep(pause_s)
        raise NotReachable(0, "host_unreachable", "not sent")

    def console(self, ref: str) -> AbstractAsyncContextManager["AsyncConsole"]:
        """See ``client.vms.console``."""
        # Imported here: most programs never open a console.
        from nexus.client.console import open_console_async

        return open_console_async(self._url, self._token, ref)

    async def stream(self, call: Call[None]) -> AsyncIterator[bytes]:
        """The answer's body as it comes, until the manager ends it."""
        try:
            async with self._http.stream(
                call.method, call.path, params=call.params(), timeout=httpx.Timeout(10, read=None)
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise error_of(response)
                async for chunk in response.aiter_raw():
                    yield chunk
        except httpx.TransportError as error:
            raise not_reachable(self._url, error) from error

    async def pages(self, page: Callable[[str | None], Call[Page[T]]]) -> AsyncIterator[T]:
        """Every item of a list, fetched page by page."""
        cursor: str | None = None
        while True:
            answer = await self.send(page(cursor))
            for item in answer.items:
                yield item
            cursor = answer.next_cursor
            if cursor is None:
                return


class Vms:
    """``client.vms``. A VM is named by its id or its name."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self, spec: VmCreate, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> Vm:
        """Makes a VM. With ``wait``, returns when it is so or in ``error``."""
        return await self._client.send(calls.create_vm(spec, wait, timeout_s))

    def list(
        self, *, state: VmState | None = None, name: str | None = None, limit: int | None = None
    ) -> AsyncIterator[Vm]:
        """All VMs, oldest first; ``limit`` is the size of a page."""
        return self._client.pages(lambda cursor: calls.list_vms(state, name, limit, cursor))

    async def get(self, ref: str) -> Vm:
        return await self._client.send(calls.get_vm(ref))

    async def start(
        self, ref: str, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> None:
        await self._client.send(calls.act_on_vm(ref, "start", wait, timeout_s))

    async def stop(
        self,
        ref: str,
        *,
        force: bool = False,
        grace_s: float | None = None,
        wait: WaitState | None = None,
    ) -> None:
        """Asks the guest to power off; kills it after ``grace_s`` seconds, or at once."""
        await self._client.send(calls.stop_vm(ref, force, grace_s, wait))

    async def pause(
        self, ref: str, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> None:
        await self._client.send(calls.act_on_vm(ref, "pause", wait, timeout_s))

    async def resume(
        self, ref: str, *, wait: WaitState | None = None, timeout_s: float | None = None
    ) -> None:
        await self._client.send(calls.act_on_vm(ref, "resume", wait, timeout_s))

    async def delete(self, ref: str, *, wait: bool = True, timeout_s: float | None = None) -> None:
        """Deletes a VM in whatever state it is."""
        await self._client.send(calls.delete_vm(ref, wait, timeout_s))

    async def logs(self, ref: str, *, source: LogSource = "console", tail: int = 100) -> LogChunk:
        return await self._client.send(calls.vm_logs(ref, source, tail))

    def follow_logs(
        self, ref: str, *, source: LogSource = "console", tail: int = 100
    ) -> AsyncIterator[bytes]:
        """The last ``tail`` lines, then what is written, as it is written."""
        return self._client.stream(calls.follow_vm_logs(ref, source, tail))

    def console(self, ref: str) -> AbstractAsyncContextManager["AsyncConsole"]:
        """``async with client.vms.console(ref) as console``: the serial console, both ways."""
        return self._client.console(ref)

    def events(self, ref: str, *, limit: int | None = None) -> AsyncIterator[VmEvent]:
        return self._client.pages(lambda cursor: calls.vm_events(ref, limit, cursor))


class Images:
    """``client.images``."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def register(self, spec: ImageCreate) -> Image:
        """Registers a file that lies under the manager's image root."""
        return await self._client.send(calls.register_image(spec))

    def list(
        self, *, kind: ImageKind | None = None, name: str | None = None, limit: int | None = None
    ) -> AsyncIterator[Image]:
        return self._client.pages(lambda cursor: calls.list_images(kind, name, limit, cursor))

    async def get(self, ref: str) -> Image:
        return await self._client.send(calls.get_image(ref))

    async def delete(self, ref: str) -> None:
        await self._client.send(calls.delete_image(ref))

    async def build(self, recipe: ImageRecipe) -> ImageBuild:
        """Begins a build, or returns the one of this recipe that runs already."""
        return await self._client.send(calls.build_image(ImageBuildCreate(recipe=recipe)))

    async def get_build(self, build_id: str) -> ImageBuild:
        return await self._client.send(calls.get_build(build_id))

    def builds(self, *, limit: int | None = None) -> AsyncIterator[ImageBuild]:
        """All builds, the newest first."""
        return self._client.pages(lambda cursor: calls.list_builds(limit, cursor))


class Hosts:
    """``client.hosts``."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def list(self, *, limit: int | None = None) -> AsyncIterator[Host]:
        return self._client.pages(lambda cursor: calls.list_hosts(limit, cursor))

    async def get(self, host_id: str) -> Host:
        return await self._client.send(calls.get_host(host_id))
