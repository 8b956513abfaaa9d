"""A large upload through a real manager process: little memory, and neither a kill nor a lost
connection makes it begin anew."""

import hashlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from nexus.api.images import ImageUploadCreate
from nexus.client import Client

MIB = 1 << 20
SIZE_MIB = 2048
ISLANDS = 256
"""Every so many MiB hold a MiB of data; the rest are holes, here and in the store."""
MEMORY_MIB = 64
DEADLINE_S = 60


@dataclass
class Process:
    """A manager that can be killed and started again."""

    data: Path
    port: int
    running: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {
            "NEXUS_DATA_DIR": str(self.data),
            "MANAGER_IMAGE_ROOT": str(self.data / "images"),
            "MANAGER_BIND": f"127.0.0.1:{self.port}",
            "NEXUS_AGENT_URL": f"unix:{self.data / 'no-agent.sock'}",
        }
        with (self.data / "log").open("ab") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-m", "nexus.manager"], env=os.environ | environment, stderr=log
            )
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            assert self.running.poll() is None, (self.data / "log").read_text()
            try:
                if httpx.get(f"{self.url}/healthz", trust_env=False).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError("the manager does not listen")

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.running is not None:
            self.running.send_signal(how)
            self.running.wait(timeout=DEADLINE_S)

    def memory_mib(self, what: str) -> int:
        assert self.running
        status = Path(f"/proc/{self.running.pid}/status").read_text()
        found = re.search(rf"{what}:\s*(\d+) kB", status)
        assert found
        return int(found[1]) // 1024

    def forget_peak(self) -> None:
        assert self.running
        Path(f"/proc/{self.running.pid}/clear_refs").write_text("5")

    def client(self) -> Client:
        return Client(self.url, (self.data / "admin.token").read_text().strip())


@pytest.fixture
def process(tmp_path: Path, free_port: int) -> Iterator[Process]:
    made = Process(tmp_path, free_port)
    made.start()
    yield made
    made.kill(signal.SIGTERM)


def islands(path: Path, size_mib: int) -> Path:
    with path.open("wb") as file:
        for at in range(0, size_mib, ISLANDS):
            file.seek(at * MIB)
            file.write(os.urandom(MIB))
        file.truncate(size_mib * MIB)
    return path


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_two_gibibytes_take_little_memory(process: Process, tmp_path: Path) -> None:
    disk = islands(tmp_path / "disk", SIZE_MIB)
    with process.client() as client:
        list(client.images.list())
        before = process.memory_mib("VmRSS")
        process.forget_peak()
        image = client.images.upload(disk, name="large")
        grown = process.memory_mib("VmHWM") - before
    assert image.size_bytes == SIZE_MIB * MIB
    assert image.sha256 == digest(disk)
    assert grown < MEMORY_MIB, f"{grown} MiB more"
    kept = process.data / "store" / "sha256" / image.sha256
    assert kept.stat().st_blocks * 512 < 2 * (SIZE_MIB // ISLANDS) * MIB, "holes stay holes"
    assert list((process.data / "store" / "uploads").iterdir()) == []


def test_an_upload_goes_on_after_the_manager_is_killed(process: Process, tmp_path: Path) -> None:
    disk = islands(tmp_path / "disk", 128)
    killed: list[int] = []
    reached: list[int] = []
    restarted = threading.Thread(target=lambda: (process.kill(), process.start()))

    def progress(done: int, total: int) -> None:
        reached.append(done)
        if not killed and done > total // 2:
            killed.append(done)
            restarted.start()

    with process.client() as client:
        image = client.images.upload(disk, name="large", progress=progress)
    restarted.join()
    assert killed
    assert image.sha256 == digest(disk)
    went_on = min(reached[reached.index(killed[0]) :])
    assert went_on > 0, "it began anew"


def test_what_a_lost_connection_brought_is_kept(process: Process) -> None:
    content = os.urandom(3 * MIB)
    (process.data / "disk").write_bytes(content)
    reached: list[int] = []
    with process.client() as client:
        spec = ImageUploadCreate(kind="initrd", name="x", size_bytes=len(content))
        upload = client.images.begin_upload(spec)
        token = (process.data / "admin.token").read_text().strip()
        head = (
            f"PATCH /v1/images/uploads/{upload.id} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {token}\r\nUpload-Offset: 0\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", process.port)) as connection:
            connection.sendall(head.encode() + content[: 2 * MIB])
            deadline = time.monotonic() + DEADLINE_S
            while client.images.get_upload(upload.id).offset < MIB:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        image = client.images.upload(
            process.data / "disk",
            name="x",
            resume=upload.id,
            progress=lambda done, _: reached.append(done),
        )
    assert min(reached) >= MIB
    assert image.sha256 == hashlib.sha256(content).hexdigest()


def test_a_request_right_after_a_refused_upload_is_read(process: Process) -> None:
    """The rest of the refused body and the beginning of the next head come in one piece."""
    token = (process.data / "admin.token").read_text().strip()
    body = b"x" * 200_000
    refused = (
        f"PATCH /v1/images/uploads/none HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    following = f"GET /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", process.port), timeout=DEADLINE_S) as connection:
        connection.sendall(refused.encode())
        answer = http.client.HTTPResponse(connection, method="PATCH")
        answer.begin()
        assert answer.status == 422
        answer.read()
        connection.sendall(body + following.encode()[:20])
        time.sleep(0.2)  # lets the server see a head that is not complete
        connection.sendall(following.encode()[20:])
        answer = http.client.HTTPResponse(connection, method="GET")
        answer.begin()
        assert answer.status == 200
