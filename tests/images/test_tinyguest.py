"""The tiny guest on real Firecracker: the promises of docs/contracts.md."""

import http.client
import json
import re
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.firecracker
DEADLINE_S = 60


class Api(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self.path = path

    def connect(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        self.sock = socket.socket(socket.AF_UNIX)
        while True:
            try:
                return self.sock.connect(str(self.path))
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise

    def send_json(self, method: str, path: str, body: dict[str, object]) -> None:
        self.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.getresponse()
        assert answer.status == 204, answer.read()
        answer.read()


class Guest:
    def __init__(self, process: "subprocess.Popen[bytes]", socket_path: Path) -> None:
        self.process = process
        self.api = Api(socket_path)
        self.seen = b""

    def wait_for(self, pattern: bytes) -> bytes:
        assert self.process.stdout
        deadline = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            data = self.process.stdout.read1(65536) if ready else b""  # type: ignore[attr-defined]
            assert data, f"no {pattern!r} in {self.seen!r}"
            self.seen += data
        self.seen = self.seen[found.end() :]
        return found[found.lastindex or 0]

    def type(self, keys: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(keys)
        self.process.stdin.flush()

    def count(self) -> int:
        self.type(b"c")
        return int(self.wait_for(rb"count=(\d+)\r\n"))

    def count_past(self, number: int) -> int:
        deadline = time.monotonic() + DEADLINE_S
        while (now := self.count()) <= number:
            assert time.monotonic() < deadline
        return now


@contextmanager
def firecracker(binary: Path, folder: Path, *arguments: str) -> Iterator[Guest]:
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [str(binary), "--api-sock", "api.sock", "--level", "Error", *arguments],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Guest(process, folder / "api.sock")
    finally:
        process.kill()
        process.communicate()


@contextmanager
def booted(binary: Path, kernel: Path, folder: Path, drives: int = 1) -> Iterator[Guest]:
    names = [f"disk{number}" for number in range(drives)]
    for name in names:
        (folder / name).write_bytes(bytes(4096))
    config = {
        "boot-source": {"kernel_image_path": str(kernel), "boot_args": "console=ttyS0"},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "drives": [
            {"drive_id": n, "path_on_host": n, "is_root_device": False, "is_read_only": False}
            for n in names
        ],
    }
    (folder / "vmm.json").write_text(json.dumps(config))
    with firecracker(binary, folder, "--config-file", "vmm.json") as guest:
        assert guest.wait_for(rb"nexus-tiny ready devices=(\d+)\r\n") == str(drives).encode()
        yield guest


def test_it_counts_its_devices_and_echoes(
    firecracker_binary: Path, tiny_kernel: Path, tmp_path: Path
) -> None:
    with booted(firecracker_binary, tiny_kernel, tmp_path, drives=3) as guest:
        guest.type(b"hello world")
        guest.wait_for(rb"hello world")


def test_it_counts_by_itself_and_ends_on_q(
    firecracker_binary: Path, tiny_kernel: Path, tmp_path: Path
) -> None:
    with booted(firecracker_binary, tiny_kernel, tmp_path) as guest:
        guest.count_past(guest.count() + 1)
        guest.type(b"q")
        assert guest.process.wait(DEADLINE_S) == 0


def test_ctrl_alt_del_ends_it(firecracker_binary: Path, tiny_kernel: Path, tmp_path: Path) -> None:
    with booted(firecracker_binary, tiny_kernel, tmp_path) as guest:
        guest.api.send_json("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
        assert guest.process.wait(DEADLINE_S) == 0


def test_a_restored_snapshot_goes_on_counting(
    firecracker_binary: Path, tiny_kernel: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    with booted(firecracker_binary, tiny_kernel, tmp_path) as guest:
        before = guest.count_past(2)
        guest.api.send_json("PATCH", "/vm", {"state": "Paused"})
        guest.api.send_json(
            "PUT", "/snapshot/create", {"snapshot_path": "state", "mem_file_path": "memory"}
        )
        guest.api.send_json("PATCH", "/vm", {"state": "Resumed"})
        guest.count_past(before)
    other.mkdir()
    for name in ("state", "memory", "disk0"):
        (tmp_path / name).rename(other / name)
    with firecracker(firecracker_binary, other) as restored:
        memory = {"backend_type": "File", "backend_path": "memory"}
        restored.api.send_json(
            "PUT",
            "/snapshot/load",
            {"snapshot_path": "state", "mem_backend": memory, "resume_vm": True},
        )
        again = restored.count()
        assert before <= again
        restored.count_past(again)
        restored.type(b"q")
        assert restored.process.wait(DEADLINE_S) == 0
