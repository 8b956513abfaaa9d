"""A manager's contents, given out at a pace that the test decides."""

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from nexus.api.errors import HostUnreachable
from nexus.api.machines import Blob
from nexus.images.store import Store
from nexus.manager.routes import blobs

MIB = 1 << 20


class Gate:
    """Stands before what the manager reads for agents, and notes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reset()
        read, find = blobs._read, blobs._ranges

        async def gated(file: Path, start: int, end: int) -> AsyncIterator[bytes]:
            self.reads.append((file.name, start, end))
            async for chunk in read(file, start, end):
                if self.hold_after is not None and self.passed >= self.hold_after:
                    await self._opened.wait()
                self.passed += len(chunk)
                yield chunk

        def counted(file: Path) -> tuple[int, list[tuple[int, int]]]:
            self.maps.append(file.name)
            if self.fails:
                self.fails -= 1
                raise HostUnreachable("not now")
            return find(file)

        monkeypatch.setattr(blobs, "_read", gated)
        monkeypatch.setattr(blobs, "_ranges", counted)

    def reset(self) -> None:
        """Everything passes, and nothing has yet."""
        self.reads: list[tuple[str, int, int]] = []
        self.maps: list[str] = []
        self.hold_after: int | None = None
        """So many bytes pass in all; then everybody waits."""
        self.passed = 0
        self.fails = 0
        """So many requests for maps are answered 502."""
        self._opened = anyio.Event()

    def open(self) -> None:
        """Lets everything pass from now on."""
        self.hold_after = None
        self._opened.set()


def content(folder: Path, name: str, mib: int = 8) -> Path:
    """A file with two parts that hold something and holes between and behind them."""
    made = folder / name
    half = os.urandom(mib * MIB // 2)
    with made.open("wb") as file:
        file.write(half)
        file.seek(16 * MIB, os.SEEK_CUR)
        file.write(half)
        file.truncate((mib + 48) * MIB)
    return made


def stored(store: Store, file: Path) -> Blob:
    kept = store.import_file(file)
    return Blob(sha256=kept.sha256, size_bytes=kept.size_bytes)


def same(one: Path, other: Path) -> bool:
    return hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()
