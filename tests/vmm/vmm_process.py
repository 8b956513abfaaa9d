"""A VMM in a directory of its own, with its console and raw access to its API."""

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import anyio

from nexus.vmm.client import VmmClient

# Generous: two cores may be shared by several emulated guests.
BOOT_S = 90.0
API_S = 30.0
EXIT_S = 60.0


@dataclass(frozen=True)
class Guest:
    """What a VMM boots, and how to see that it lives and remembers."""

    kernel: Path
    initrd: Path | None
    rootfs: Path | None
    boot_args: str
    banner: str
    # Typed before a snapshot, then after its load; the last answer must match.
    set_key: str
    set_answer: str
    get_key: str
    get_answer: str


@dataclass(frozen=True)
class Engine:
    """One of the two VMMs under test."""

    name: str
    command: list[str]
    guest: Guest

    def spawn(self, folder: Path, *arguments: str) -> "VmmProcess":
        return VmmProcess([*self.command, *arguments], folder)

    def furnish(self, folder: Path) -> None:
        """Everything that requests name, relative to the folder."""
        guest = self.guest
        (folder / "kernel").symlink_to(guest.kernel)
        if guest.initrd is not None:
            (folder / "initrd").symlink_to(guest.initrd)
        if guest.rootfs is not None:
            sparse = ["cp", "--sparse=always", str(guest.rootfs), str(folder / "root.img")]
            subprocess.run(sparse, check=True)
        else:
            _empty_disk(folder / "root.img")
        _empty_disk(folder / "data.img")
        _empty_disk(folder / "other.img")
        (folder / "folder").mkdir()
        for name in ("log", "metrics"):
            (folder / name).touch()


def _empty_disk(path: Path) -> None:
    with path.open("wb") as disk:
        disk.truncate(1 << 20)


class Console:
    """All that came out of a pipe so far, and a way to wait for more."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._text = ""
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while chunk := os.read(self._pipe.fileno(), 65536):
            with self._news:
                self._text += chunk.decode("utf-8", "replace")
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def text(self) -> str:
        with self._news:
            return self._text

    def wait_for(self, pattern: str, *, timeout_s: float, start: int = 0) -> re.Match[str]:
        """The first match after ``start``; AssertionError with the console otherwise."""
        found: list[re.Match[str]] = []

        def seen() -> bool:
            match = re.compile(pattern).search(self._text, start)
            if match:
                found.append(match)
            return bool(match) or self._ended

        with self._news:
            self._news.wait_for(seen, timeout_s)
        assert found, f"no {pattern!r} within {timeout_s} s in:\n{self.text[-3000:]}"
        return found[0]

    def join(self) -> None:
        self._reader.join()
        self._pipe.close()


class VmmProcess:
    """One VMM; ``close`` ends it. ``tap`` is there for its NIC."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.folder = folder
        self.tap = ""
        self.socket = folder / "api.sock"
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.fspath(Path.cwd())},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin = self.process.stdin
        self.console = Console(self.process.stdout)
        self.client = VmmClient(self.socket, timeout_s=API_S)

    def died(self) -> bool:
        return self.process.poll() is not None

    def wait_for_api(self) -> None:
        async def wait() -> None:
            await self.client.wait_for_socket(API_S, died=self.died)

        # In a thread: the caller may be inside an event loop of its own.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(anyio.run, wait).result()

    def type(self, keys: str) -> None:
        self.stdin.write(keys.encode())
        self.stdin.flush()

    def exit_code_within(self, timeout_s: float) -> int | None:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        """Status and body of the answer to any request, sent by another HTTP client."""
        connection = _UnixConnection(self.socket)
        try:
            # A body that is too large may be refused before all of it is sent.
            with contextlib.suppress(BrokenPipeError):
                connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.console.join()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=API_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(API_S)
        self.sock.connect(os.fspath(self._path))


class Taps:
    """TAP devices of one test, taken away again."""

    def __init__(self) -> None:
        self._made: list[str] = []

    def make(self) -> str:
        global _taps_made
        _taps_made += 1
        name = f"nxconf{_taps_made}"
        subprocess.run([_ip(), "tuntap", "add", name, "mode", "tap"], check=True)
        self._made.append(name)
        return name

    def close(self) -> None:
        for name in self._made:
            subprocess.run([_ip(), "link", "del", name], check=True)


_taps_made = 0


def _ip() -> str:
    found = shutil.which("ip")
    assert found, "ip is missing: apt-get install iproute2"
    return found
