"""What ``client.vms`` can do inside guests, sync and async."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, BinaryIO

from nexus.api.guest import ExecRequest, ExecResult, ExecStart, GuestEntry, GuestFile, GuestInfo
from nexus.client.calls import guests as calls
from nexus.client.files import AsyncRemoteFile, RemoteFile

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.process import AsyncProcess, Process
    from nexus.client.sync_client import Client

PIECE_BYTES = 65536
OCTETS = {"content-type": "application/octet-stream"}


class GuestCalls:
    """Programs and files in the guests of VMs that run."""

    _client: "Client"

    def guest(self, ref: str) -> GuestInfo:
        """What the agent inside the guest says: host name, uptime, addresses."""
        return self._client.send(calls.guest(ref))

    def exec(
        self,
        ref: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: str | None = None,
        timeout_s: float = 60.0,
    ) -> ExecResult:
        """Runs a program to its end; keeps the first MiB of each output, as text.

        A program that fails is a result, not an error: look at ``exit_code``.
        """
        return self._client.send(
            calls.run_program(
                ref,
                ExecRequest(
                    argv=list(argv),
                    env=dict(env or {}),
                    cwd=cwd,
                    user=user,
                    stdin=stdin,
                    timeout_s=timeout_s,
                ),
            )
        )

    def process(
        self,
        ref: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
    ) -> AbstractContextManager["Process"]:
        """``with client.vms.process(ref, ["sh"]) as process``: a program with streams both ways.

        Leaving the block ends it.
        """
        start = ExecStart(
            argv=list(argv),
            env=dict(env or {}),
            cwd=cwd,
            user=user,
            tty=tty,
            rows=rows,
            cols=cols,
        )
        return self._client.process(ref, start)

    def put_file(
        self,
        ref: str,
        path: str,
        content: bytes | BinaryIO | Iterable[bytes],
        *,
        mode: int = 0o644,
    ) -> int:
        """Writes a file as ``content`` is read; an old one is replaced when this one is whole.

        Returns its size in bytes.
        """
        return self._client.send_stream(
            calls.put_file(ref, path, mode), _pieces(content), OCTETS
        ).size_bytes

    def get_file(self, ref: str, path: str) -> AbstractContextManager[RemoteFile]:
        """``with client.vms.get_file(ref, path) as file``: iterate over it, or ``file.read()``."""
        return self._client.download(calls.get_file(ref, path))

    def stat_file(self, ref: str, path: str) -> GuestFile:
        """What is at a path; a link is not followed. Raises NotFoundError."""
        return self._client.send(calls.stat_file(ref, path))

    def list_files(self, ref: str, path: str) -> list[GuestEntry]:
        """All entries of a directory."""
        return self._client.send(calls.list_files(ref, path)).items

    def make_directory(self, ref: str, path: str, *, mode: int = 0o755) -> None:
        """Makes a directory whose parent exists."""
        self._client.send(calls.make_directory(ref, path, mode))


class AsyncGuestCalls:
    """Programs and files in the guests of VMs that run."""

    _client: "AsyncClient"

    async def guest(self, ref: str) -> GuestInfo:
        """What the agent inside the guest says: host name, uptime, addresses."""
        return await self._client.send(calls.guest(ref))

    async def exec(
        self,
        ref: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: str | None = None,
        timeout_s: float = 60.0,
    ) -> ExecResult:
        """Runs a program to its end; keeps the first MiB of each output, as text.

        A program that fails is a result, not an error: look at ``exit_code``.
        """
        return await self._client.send(
            calls.run_program(
                ref,
                ExecRequest(
                    argv=list(argv),
                    env=dict(env or {}),
                    cwd=cwd,
                    user=user,
                    stdin=stdin,
                    timeout_s=timeout_s,
                ),
            )
        )

    def process(
        self,
        ref: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
    ) -> AbstractAsyncContextManager["AsyncProcess"]:
        """``async with client.vms.process(ref, ["sh"]) as process``: streams both ways.

        Leaving the block ends it.
        """
        start = ExecStart(
            argv=list(argv),
            env=dict(env or {}),
            cwd=cwd,
            user=user,
            tty=tty,
            rows=rows,
            cols=cols,
        )
        return self._client.process(ref, start)

    async def put_file(
        self,
        ref: str,
        path: str,
        content: bytes | AsyncIterable[bytes],
        *,
        mode: int = 0o644,
    ) -> int:
        """Writes a file as ``content`` is read; an old one is replaced when this one is whole.

        Returns its size in bytes.
        """
        call = calls.put_file(ref, path, mode)
        written = await self._client.send_stream(call, _async_pieces(content), OCTETS)
        return written.size_bytes

    def get_file(self, ref: str, path: str) -> AbstractAsyncContextManager[AsyncRemoteFile]:
        """``async with client.vms.get_file(ref, path) as file``: iterate, or ``file.read()``."""
        return self._client.download(calls.get_file(ref, path))

    async def stat_file(self, ref: str, path: str) -> GuestFile:
        """What is at a path; a link is not followed. Raises NotFoundError."""
        return await self._client.send(calls.stat_file(ref, path))

    async def list_files(self, ref: str, path: str) -> list[GuestEntry]:
        """All entries of a directory."""
        return (await self._client.send(calls.list_files(ref, path))).items

    async def make_directory(self, ref: str, path: str, *, mode: int = 0o755) -> None:
        """Makes a directory whose parent exists."""
        await self._client.send(calls.make_directory(ref, path, mode))


def _pieces(content: bytes | BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(content, bytes):
        for at in range(0, len(content), PIECE_BYTES):
            yield content[at : at + PIECE_BYTES]
        return
    read = getattr(content, "read", None)
    if read is None:
        yield from content
        return
    while piece := read(PIECE_BYTES):
        yield piece


async def _async_pieces(content: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(content, bytes):
        for piece in _pieces(content):
            yield piece
        return
    async for piece in content:
        yield piece
