"""100 VMs: one POST with a count, beside a loop over bare Firecracker."""

import json
import select
import subprocess
import time
from pathlib import Path

import httpx

from bench.create import BANNER, MEM_MIB
from bench.table import Table
from tests.integration.installation import Installation
from tests.parts import cached_tiny_kernel, find_binary

DEADLINE_S = 120.0


def measure(folder: Path, rounds: int, count: int) -> Table:
    """Bare and Nexus in turn. Every VM of a round runs until the round has ended."""
    kernel = cached_tiny_kernel()
    firecracker = find_binary("FC_BINARY", "firecracker")
    rows: dict[str, list[float]] = {
        f"bare loop, one after the other → {count} banners": [],
        f"POST count={count} → {count} banners": [],
        f"POST count={count} → 201": [],
        f"POST count={count}&wait=running → 201": [],
        "actions delete, wait=deleted → 200": [],
    }
    with Installation(folder / "d", 18193, "firecracker") as installation:
        installation.register("kernel", "tiny", kernel)
        with installation.http() as http:
            for number in range(rounds + 1):
                sample = [
                    _bare_ms(firecracker, kernel, folder / f"bare-{number}", count),
                    *_nexus_ms(installation, http, f"b{number}", count),
                    *_waited_ms(http, f"w{number}", count),
                ]
                if number:
                    for row, value in zip(rows.values(), sample, strict=True):
                        row.append(value)
    return Table(f"{count} VMs in one request, tiny guest on Firecracker", rows, next(iter(rows)))


def _bare_ms(firecracker: Path, kernel: Path, folder: Path, count: int) -> float:
    """Each spawned when the one before has said its banner; all of them run at the end."""
    folder.mkdir(parents=True)
    (folder / "vm.json").write_text(
        json.dumps(
            {
                "boot-source": {"kernel_image_path": str(kernel), "boot_args": "console=ttyS0"},
                "drives": [],
                "machine-config": {"vcpu_count": 1, "mem_size_mib": MEM_MIB},
            }
        )
    )
    running: list[subprocess.Popen[bytes]] = []
    for number in range(count):
        # A line of the log in the middle of the banner would hide it.
        (folder / f"{number}.log").touch()
    try:
        begun = time.perf_counter()
        for number in range(count):
            running.append(
                subprocess.Popen(
                    [
                        *(firecracker, "--api-sock", f"{number}.sock"),
                        *("--config-file", "vm.json", "--log-path", f"{number}.log"),
                    ],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )
            _await_banner(running[-1])
        return (time.perf_counter() - begun) * 1000
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.communicate()


def _await_banner(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    seen = b""
    while BANNER not in seen:
        chunk = process.stdout.read1(4096)
        assert chunk, f"firecracker ended before the banner: {seen!r}"
        seen += chunk


def _nexus_ms(
    installation: Installation, http: httpx.Client, name: str, count: int
) -> tuple[float, float]:
    """POST → the last banner, and POST → its answer."""
    begun = time.perf_counter()
    made = _create(http, name, count, "")
    answered = time.perf_counter()
    vms = installation.data / "fc" / "vms"
    pause = select.poll()
    # One after the other: looking at a hundred files all the time slows down what is measured.
    for vm in made:
        while not _has_banner(vms / vm["id"] / "console.log"):
            assert time.perf_counter() - begun < DEADLINE_S, f"{vm['name']} has no banner"
            pause.poll(2)
    shown = time.perf_counter()
    _delete(http, made)
    return (shown - begun) * 1000, (answered - begun) * 1000


def _waited_ms(http: httpx.Client, name: str, count: int) -> tuple[float, float]:
    begun = time.perf_counter()
    made = _create(http, name, count, "?wait=running")
    running = time.perf_counter()
    assert {vm["state"] for vm in made} == {"running"}
    _delete(http, made)
    return (running - begun) * 1000, (time.perf_counter() - running) * 1000


def _create(http: httpx.Client, name: str, count: int, query: str) -> list[dict[str, str]]:
    body = {"name": name, "count": count, "kernel": "tiny", "mem_mib": MEM_MIB}
    created = http.post(f"/v1/vms{query}", json=body)
    assert created.status_code == 201, created.text
    items: list[dict[str, str]] = created.json()["items"]
    return items


def _delete(http: httpx.Client, made: list[dict[str, str]]) -> None:
    body = {"action": "delete", "ids": [vm["id"] for vm in made]}
    gone = http.post("/v1/vms/actions?wait=deleted", json=body)
    assert all(item["ok"] for item in gone.json()["items"]), gone.text


def _has_banner(console: Path) -> bool:
    try:
        return BANNER in console.read_bytes()
    except FileNotFoundError:
        return False
