"""Following files as they grow, by inotify: one instance for all readers, no polling."""

import ctypes
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from nexus.agent.nofollow import opened

_IN_MODIFY = 0x0002
_IN_ATTRIB = 0x0004
_IN_DELETE_SELF = 0x0400
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC
_HEADER = struct.Struct("iIII")

CHUNK_BYTES = 64 << 10
RECHECK_S = 5.0
"""A file that was replaced, as a VMM's log is at each boot, is noticed at the latest then."""


class FileWatch:
    """Tells who waits for a file that it changed. ``run`` must be running in a task."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._waiting: dict[int, set[Changes]] = {}

    async def run(self) -> None:
        """Reads the kernel's notices until cancelled."""
        try:
            while True:
                await anyio.wait_readable(self._fd)
                self._dispatch(os.read(self._fd, CHUNK_BYTES))
        finally:
            os.close(self._fd)

    def _dispatch(self, notices: bytes) -> None:
        at = 0
        while at < len(notices):
            watch, _, _, name_length = _HEADER.unpack_from(notices, at)
            at += _HEADER.size + name_length
            for changes in self._waiting.get(watch, ()):
                changes.changed.set()

    @contextmanager
    def changes(self, path: Path) -> Iterator["Changes"]:
        """Raises OSError when the file is not there or too many are watched."""
        mask = _IN_MODIFY | _IN_ATTRIB | _IN_DELETE_SELF
        watch = self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if watch < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(path))
        changes = Changes()
        self._waiting.setdefault(watch, set()).add(changes)
        try:
            yield changes
        finally:
            others = self._waiting[watch]
            others.discard(changes)
            if not others:
                del self._waiting[watch]
                self._libc.inotify_rm_watch(self._fd, watch)


class Changes:
    """Set whenever the file changed since it was last cleared."""

    def __init__(self) -> None:
        self.changed = anyio.Event()

    async def wait(self, timeout_s: float) -> None:
        with anyio.move_on_after(timeout_s):
            await self.changed.wait()
        self.changed = anyio.Event()


async def follow(path: Path, offset: int, watch: FileWatch) -> AsyncIterator[bytes]:
    """The bytes of a file from ``offset`` on, then what is appended, for ever.

    Ends when the file is gone, or there is no file in its place. One that shrank or was replaced
    is read from its beginning.
    """
    while path.is_file() and not path.is_symlink():
        with opened(path) as file, watch.changes(path) as changes:
            inode = os.fstat(file).st_ino
            while True:
                if os.fstat(file).st_size < offset:
                    offset = 0
                chunk = os.pread(file, CHUNK_BYTES, offset)
                if chunk:
                    offset += len(chunk)
                    yield chunk
                    continue
                await changes.wait(RECHECK_S)
                if os.fstat(file).st_size <= offset and _inode(path) != inode:
                    offset = 0
                    break


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
