"""POST /v1/vms → the guest's first output, beside bare ``firecracker --config-file``."""

import json
import subprocess
import threading
import time
from datetime import datetime
from pathlib import Path

import httpx

from bench.table import Table
from tests.integration.installation import Installation
from tests.parts import cached_tiny_kernel, find_binary

BANNER = b"nexus-tiny ready"
MEM_MIB = 32
WARM_UP = 3


def measure(folder: Path, rounds: int) -> Table:
    """Bare and Nexus in turn, so that both see the same machine."""
    kernel = cached_tiny_kernel()
    firecracker = find_binary("FC_BINARY", "firecracker")
    rows: dict[str, list[float]] = {
        "bare firecracker --config-file → banner": [],
        "POST /v1/vms → banner": [],
        "POST /v1/vms → 201": [],
        "POST /v1/vms?wait=running → 201": [],
        "row written → disk, TAP and config ready": [],
        "row written → VMM reports running": [],
    }
    bare, banner, answer, waited, configured, started = rows.values()
    with Installation(folder / "d", 18191, "firecracker") as installation:
        installation.register("kernel", "tiny", kernel)
        with installation.http() as http:
            for number in range(rounds + WARM_UP):
                sample_bare = bare_ms(firecracker, kernel, folder / f"bare-{number}")
                sample = _nexus_ms(installation, http, f"b{number}", "")
                sample_wait = _nexus_ms(installation, http, f"w{number}", "?wait=running")
                if number < WARM_UP:
                    continue
                bare.append(sample_bare)
                banner.append(sample["banner"])
                answer.append(sample["answer"])
                waited.append(sample_wait["answer"])
                configured.append(sample_wait["configured"])
                started.append(sample_wait["started"])
    return Table("A create on Firecracker, one at a time, tiny guest", rows, next(iter(rows)))


def bare_ms(firecracker: Path, kernel: Path, folder: Path) -> float:
    """Spawn → banner of one bare Firecracker, milliseconds."""
    folder.mkdir()
    (folder / "vm.json").write_text(
        json.dumps(
            {
                "boot-source": {"kernel_image_path": str(kernel), "boot_args": "console=ttyS0"},
                "drives": [],
                "machine-config": {"vcpu_count": 1, "mem_size_mib": MEM_MIB},
            }
        )
    )
    # A line of the log in the middle of the banner would hide it.
    (folder / "fc.log").touch()
    begun = time.perf_counter()
    process = subprocess.Popen(
        [firecracker, "--api-sock", "fc.sock", "--config-file", "vm.json", "--log-path", "fc.log"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    seen = b""
    while BANNER not in seen:
        chunk = process.stdout.read1(4096)
        assert chunk, f"firecracker ended before the banner: {seen!r}"
        seen += chunk
    taken = (time.perf_counter() - begun) * 1000
    process.kill()
    process.communicate()
    return taken


def _nexus_ms(
    installation: Installation, http: httpx.Client, name: str, query: str
) -> dict[str, float]:
    body = {"name": name, "kernel": "tiny", "mem_mib": MEM_MIB}
    begun = time.perf_counter()
    created = http.post(f"/v1/vms{query}", json=body)
    answered = time.perf_counter()
    assert created.status_code == 201, created.text
    vm_id = created.json()["id"]
    # Looked for from the answer on, which comes long before: looking takes a processor's time too.
    _await_banner(installation.data / "fc" / "vms" / vm_id / "console.log")
    times = {
        "banner": (time.perf_counter() - begun) * 1000,
        "answer": (answered - begun) * 1000,
    }
    url = f"/v1/vms/{vm_id}"
    if query:
        at: dict[str, datetime] = {}
        for event in http.get(f"{url}/events").json()["items"]:
            at.setdefault(event["state"], datetime.fromisoformat(event["at"]))
        row = datetime.fromisoformat(created.json()["item"]["created_at"])
        times["configured"] = (at["configured"] - row).total_seconds() * 1000
        times["started"] = (at["running"] - row).total_seconds() * 1000
    http.delete(f"{url}?wait=deleted")
    return times


def _await_banner(console: Path) -> None:
    deadline = time.perf_counter() + 10
    pause = threading.Event()
    while True:
        if console.exists() and BANNER in console.read_bytes():
            return
        assert time.perf_counter() < deadline, "no banner"
        pause.wait(0.0003)
