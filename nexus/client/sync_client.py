"""The sync client."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

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
from nexus.client.files import RemoteFile
from nexus.client.parts import Parts
from nexus.client.retries import RETRY_ERRORS, backoffs, may_pass

if TYPE_CHECKING:
    from nexus.client.console import Console
    from nexus.client.process import Process

T = TypeVar("T")


class Client(Parts):
    """A manager's API. Use as a context manager, or call ``close``.

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
        self._http = httpx.Client(
            base_url=url, headers=headers, verify=trusted(url), trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def usage(self) -> Usage:
        """What projects and hosts use. Raises NexusApiError."""
        return self.send(get_usage())

    def close(self) -> None:
        self._http.close()

    def ready(self) -> bool:
        """Whether the manager serves and has a healthy host."""
        try:
            return self.send(calls.ready())
        except NexusApiError:
            return False

    def send(self, call: Call[T]) -> T:
        """Sends one call. Raises NexusApiError."""
        return answer_of(call.read, self._exchange(call))

    def send_for_etag(self, call: Call[T]) -> tuple[T, str]:
        """The same, with the ETag of the thing in the answer."""
        response = self._exchange(call)
        return answer_of(call.read, response), response.headers.get("etag", "*")

    def _exchange(self, call: Call[T]) -> httpx.Response:
        """The answer of a call that succeeded, after as many attempts as it may have."""
        headers = call.headers()
        for pause_s in backoffs(call):
            try:
                response = self._http.request(
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
            time.sleep(pause_s)
        raise NotReachable(0, "host_unreachable", "not sent")

    def send_stream(self, call: Call[T], body: Iterator[bytes], headers: Mapping[str, str]) -> T:
        """Sends one call with a body that is never held as a whole; it is not retried."""
        try:
            response = self._http.request(
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
    ) -> Iterator[VmEvent]:
        """What happened to VMs, in one order; with ``follow`` also what happens, for ever.

        Goes on behind the event with id ``after``; 0 is the oldest one kept, and where a list
        begins by itself. ``follow`` begins with what happens from now on, connects again when the
        connection breaks, and loses nothing by it. Raises EventsLost.
        """
        from nexus.client.calls.events import Wanted, list_events
        from nexus.client.events import follow as follow_events

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
    ) -> AbstractContextManager[Vm]:
        """``with client.vm("busybox") as vm``: a running VM that is deleted at the end.

        ``image`` is its root file system. Raises the VM's own error when it does not come to run
        within ``timeout_s``; then it is deleted as well.
        """
        from nexus.client.scoped import VmOptions, scoped_vm

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
        return scoped_vm(self, options, timeout_s)

    def console(self, ref: str) -> AbstractContextManager["Console"]:
        """See ``client.vms.console``."""
        # Imported here: most programs never open a console.
        from nexus.client.console import open_console

        return open_console(self._url, self._token, ref)

    def process(self, ref: str, start: ExecStart) -> AbstractContextManager["Process"]:
        """See ``client.vms.process``."""
        from nexus.client.process import open_process

        return open_process(self._url, self._token, ref, start)

    @contextmanager
    def download(self, call: Call[None]) -> Iterator[RemoteFile]:
        """An answer that is a file. Raises NexusApiError."""
        timeout = httpx.Timeout(STALL_TIMEOUT_S, connect=call.timeout_s)
        request = self._http.build_request(
            call.method, call.path, params=call.params(), timeout=timeout
        )
        try:
            response = self._http.send(request, stream=True)
            if not response.is_success:
                response.read()
        except httpx.TransportError as error:
            raise not_reachable(self._url, error) from error
        try:
            if not response.is_success:
                raise error_of(response)
            yield RemoteFile(self._url, response)
        finally:
            response.close()

    def stream(self, call: Call[None]) -> Iterator[bytes]:
        """The answer's body as it comes, until the manager ends it."""
        try:
            with self._http.stream(
                call.method,
                call.path,
                params=call.params(),
                timeout=httpx.Timeout(10, read=call.silence_s),
            ) as response:
                if not response.is_success:
                    response.read()
                    raise error_of(response)
                yield from response.iter_raw()
        except httpx.TransportError as error:
            raise not_reachable(self._url, error) from error

    def pages(self, page: Callable[[str | None], Call[Page[T]]]) -> Iterator[T]:
        """Every item of a list, fetched page by page."""
        cursor: str | None = None
        while True:
            answer = self.send(page(cursor))
            yield from answer.items
            cursor = answer.next_cursor
            if cursor is None:
                return
