"""How long a guest stands still for a full snapshot, beside bare Firecracker that takes one."""

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from bench.table import Table
from tests.integration.installation import Installation, wait_for
from tests.parts import cached_tiny_kernel, find_binary

SIZES_MIB = (128, 1024)
TIMEOUT_S = 300.0


def measure(folder: Path, rounds: int) -> list[Table]:
    """Bare and Nexus in turn, for each size. The first capture of each VM is left out: its host
    finds the memory for it, and bare Firecracker the blocks of the disk."""
    folder.mkdir()
    with (
        Installation(folder / "d", 18199, "firecracker") as installation,
        installation.http() as http,
    ):
        installation.register("kernel", "tiny", cached_tiny_kernel())
        return [_of(http, folder / f"bare-{size}", size, rounds) for size in SIZES_MIB]


def _of(http: httpx.Client, folder: Path, mem_mib: int, rounds: int) -> Table:
    rows: dict[str, list[float]] = {
        "bare pause, snapshot/create and resume": [],
        "POST /v1/vms/…/snapshots: pause_ms": [],
        "the same with track_dirty_pages": [],
    }
    plain, tracking = f"plain-{mem_mib}", f"tracking-{mem_mib}"
    for name in (plain, tracking):
        body = {"name": name, "kernel": "tiny", "mem_mib": mem_mib}
        body |= {"track_dirty_pages": name == tracking}
        made = http.post("/v1/vms?wait=running", json=body)
        assert made.status_code == 201, made.text
    bare = _Bare(folder, mem_mib)
    try:
        for number in range(rounds + 1):
            pauses = [_pause_ms(http, vm, number) for vm in (plain, tracking)]
            sample = [bare.capture(), *pauses]
            if number:
                for row, value in zip(rows.values(), sample, strict=True):
                    row.append(value)
    finally:
        bare.end()
    for name in (plain, tracking):
        http.delete(f"/v1/vms/{name}?wait=deleted")
    title = f"A full snapshot of a guest with {mem_mib} MiB: how long it stands still"
    return Table(title, rows, next(iter(rows)))


def _pause_ms(http: httpx.Client, vm: str, number: int) -> float:
    """The one before goes afterwards: what a guest has written since can be laid over it."""
    url, name = f"/v1/vms/{vm}/snapshots?wait=ready", f"{vm}-{number}"
    item = http.post(url, json={"name": name}, timeout=TIMEOUT_S).json()["item"]
    assert item["state"] == "ready", item
    before = f"/v1/snapshots/{vm}-{number - 1}"
    http.delete(before)
    wait_for("it is gone", lambda: http.get(before).status_code == 404)
    pause: float = item["pause_ms"]
    return pause


class _Bare:
    """A Firecracker with the tiny guest, until ``end``."""

    def __init__(self, folder: Path, mem_mib: int) -> None:
        folder.mkdir()
        self._folder = folder
        config = {
            "boot-source": {"kernel_image_path": str(cached_tiny_kernel())},
            "drives": [],
            "machine-config": {"vcpu_count": 1, "mem_size_mib": mem_mib},
        }
        (folder / "vm.json").write_text(json.dumps(config))
        firecracker = find_binary("FC_BINARY", "firecracker")
        self._process = subprocess.Popen(
            [firecracker, "--api-sock", "api.sock", "--config-file", "vm.json"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for("it runs", self._runs)

    def capture(self) -> float:
        """Milliseconds from the pause until the guest goes on."""
        begun = time.perf_counter()
        self._ask("PATCH", "/vm", {"state": "Paused"})
        self._ask("PUT", "/snapshot/create", {"snapshot_path": "state", "mem_file_path": "mem"})
        self._ask("PATCH", "/vm", {"state": "Resumed"})
        taken = (time.perf_counter() - begun) * 1000
        for name in ("mem", "state"):
            (self._folder / name).unlink()
        return taken

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _runs(self) -> bool:
        try:
            return b'"Running"' in self._ask("GET", "/", None)
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def _ask(self, method: str, target: str, body: dict[str, Any] | None) -> bytes:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.1\r\nHost: bare\r\nContent-Length: {len(content)}\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(str(self._folder / "api.sock"))
            door.sendall(head.encode() + content)
            answer = door.recv(4096)
        assert answer.startswith(b"HTTP/1.1 20"), answer
        return answer
