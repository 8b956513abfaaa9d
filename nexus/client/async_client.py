"""The async client: the same calls as the sync one, awaited."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import anyio
import httpx

from nexus.api.common import Page
from nexus.api.guest import ExecStart
from nexus.api.usage import Usage
from nexus.api.vms import Vm, VmEvent, VmState
from nexus.client.calls import system as calls
from nexus.client.calls.call import STALL_TIMEOUT_S, Call
from nexus.client.calls.usage import get_usage
from nexus.client.connect import find_connection, trusted
from nexus.client.errors import NexusApiError, NotReachable, answer_of, error_of, not_reachable
from nexus.client.files import AsyncRemoteFile
from nexus.client.parts import AsyncParts
from nexus.client.retries import RETRY_ERRORS, backoffs, may_pass

if TYPE_CHECKING:
    from nexus.client.console import AsyncConsole
    from nexus.client.process import AsyncProcess

T = TypeVar("T")


class AsyncClient(AsyncParts):
    """A manager's API. Use as an async context manager, or call ``close``.

    Raises NexusApiError and its subclasses. Reads are retried when the connection or the manager
    fails; so is every POST, which carries an Idempotency-Key, so that it is done once all the same.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        """Without arguments: the installation that ``find_connection`` finds."""
        if url is None or token is None:
            found = find_connection(url=url)
            url, token = found.url, token or found.token
        self._url = url
        self._token = token
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, verify=trusted(url), trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def usage(self) -> Usage:
        """What projects and hosts use. Raises NexusApiError."""
        return await self.send(get_usage())

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
        return answer_of(call.read, await self._exchange(call))

    async def send_for_etag(self, call: Call[T]) -> tuple[T, str]:
        """The same, with the ETag of the thing in the answer."""
        response = await self._exchange(call)
        return answer_of(call.read, response), response.headers.get("etag", "*")

    async def _exchange(self, call: Call[T]) -> httpx.Response:
        """The answer of a call that succeeded, after as many attempts as it may have."""
        headers = call.headers()
        for pause_s in backoffs(call):
            try:
                response = await self._http.request(
                    call.method,
                    call.path,
                    params=call.params(),
                    content=call.content(),
                    headers=headers,
                    timeout=call.timeout_s,
                )
            except httpx.TransportError as error:
                if pause_s is None or not isinstance(error, RETRY_ERRORS):
                    raise not_reachable(self._url, error) from error
            else:
                if response.is_success:
                    return response
                error_answer = error_of(response)
                if pause_s is None or not may_pass(call, error_answer):
                    raise error_answer
            await anyio.sleep(pause_s)
        raise NotReachable(0, "host_unreachable", "not sent")

    async def send_stream(
        self, call: Call[T], body: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> T:
        """Sends one call with a body that is never held as a whole; it is not retried."""
        try:
            response = await self._http.request(
                call.method,
                call.path,
                params=call.params(),
                content=body,
                headers=dict(headers),
                timeout=httpx.Timeout(STALL_TIMEOUT_S, connect=call.timeout_s),
            )
        except httpx.TransportError as error:
            raise not_reachable(self._url, error) from error
        if not response.is_success:
            raise error_of(response)
        return answer_of(call.read, response)

    def events(
        self,
        *,
        vm: str | None = None,
        states: Sequence[VmState] = (),
        reasons: Sequence[str] = (),
        since: datetime | None = None,
        after: int | None = None,
        follow: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[VmEvent]:
        """What happened to VMs, in one order; with ``follow`` also what happens, for ever.

        Goes on behind the event with id ``after``; 0 is the oldest one kept, and where a list
        begins by itself. ``follow`` begins with what happens from now on, connects again when the
        connection breaks, and loses nothing by it. Raises EventsLost.
        """
        from nexus.client.calls.events import Wanted, list_events
        from nexus.client.events import follow_async as follow_events

        wanted = Wanted(vm, states, reasons, since)
        if follow:
            return follow_events(self, wanted, after)
        return self.pages(lambda cursor: list_events(wanted, after, limit, cursor))

    def vm(
        self,
        image: str | None = None,
        *,
        name: str | None = None,
        vcpu: int = 1,
        mem_mib: int = 256,
        kernel: str | None = None,
        initrd: str | None = None,
        kernel_args: str | None = None,
        tags: Mapping[str, str] | None = None,
        ssh_keys: Sequence[str] = (),
        user_data: str | None = None,
        timeout_s: float = 60.0,
    ) -> AbstractAsyncContextManager[Vm]:
        """``async with client.vm("busybox") as vm``: a running VM that is deleted at the end.

        ``image`` is its root file system. Raises the VM's own error when it does not come to run
        within ``timeout_s``; then it is deleted as well.
        """
        from nexus.client.scoped import VmOptions, scoped_vm_async

        options = VmOptions(
            image=image,
            name=name,
            vcpu=vcpu,
            mem_mib=mem_mib,
            kernel=kernel,
            initrd=initrd,
            kernel_args=kernel_args,
            tags=tags or {},
            ssh_keys=ssh_keys,
            user_data=user_data,
        )
        return scoped_vm_async(self, options, timeout_s)

    def console(self, ref: str) -> AbstractAsyncContextManager["AsyncConsole"]:
        """See ``client.vms.console``."""
        # Imported here: most programs never open a console.
        from nexus.client.console import open_console_async

        return open_console_async(self._url, self._token, ref)

    def process(self, ref: str, start: ExecStart) -> AbstractAsyncContextManager["AsyncProcess"]:
        """See ``client.vms.process``."""
        from nexus.client.process import open_process_async

        return open_process_async(self._url, self._token, ref, start)

    @asynccontextmanager
    async def download(self, call: Call[None]) -> AsyncIterator[AsyncRemoteFile]:
        """An answer that is a file. Raises NexusApiError."""
        timeout = httpx.Timeout(STALL_TIMEOUT_S, connect=call.timeout_s)
        request = self._http.build_request(
            call.method, call.path, params=call.params(), timeout=timeout
        )
        try:
            response = await self._http.send(request, stream=True)
            if not response.is_success:
                await response.aread()
        except httpx.TransportError as error:
            raise not_reachable(self._url, error) from error
        try:
            if not response.is_success:
                raise error_of(response)
            yield AsyncRemoteFile(self._url, response)
        finally:
            await response.aclose()

    async def stream(self, call: Call[None]) -> AsyncIterator[bytes]:
        """The answer's body as it comes, until the manager ends it."""
        try:
            async with self._http.stream(
                call.method,
                call.path,
                params=call.params(),
                timeout=httpx.Timeout(10, read=call.silence_s),
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
