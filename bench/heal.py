"""kill -9 of a VMM → the guest's banner again, by the restart policy."""

import os
import select
import signal
import time
from pathlib import Path

from bench.create import BANNER, MEM_MIB
from bench.table import Table
from tests.integration.installation import Installation, wait_for
from tests.parts import cached_tiny_kernel

DEADLINE_S = 30.0


def measure(folder: Path, rounds: int) -> Table:
    """A new VM each time: the first restart of a VM is the one without a rest before it."""
    rows: dict[str, list[float]] = {"kill -9 → banner again": []}
    (again,) = rows.values()
    with Installation(folder / "d", 18195, "firecracker") as installation:
        installation.register("kernel", "tiny", cached_tiny_kernel())
        with installation.http() as http:
            for number in range(rounds):
                body = {"name": f"h{number}", "kernel": "tiny", "mem_mib": MEM_MIB}
                body["restart_policy"] = "on-failure"
                vm = http.post("/v1/vms?wait=running", json=body).json()["item"]
                console = installation.data / "fc" / "vms" / vm["id"] / "console.log"
                wait_for("the first banner", lambda file=console: _banners(file) == 1)
                begun = time.perf_counter()
                os.kill(vm["pid"], signal.SIGKILL)
                _await_second(console, begun)
                again.append((time.perf_counter() - begun) * 1000)
                http.delete(f"/v1/vms/{vm['id']}?wait=deleted")
    return Table(
        "A VMM that is killed runs again, tiny guest on Firecracker", rows, next(iter(rows))
    )


def _await_second(console: Path, begun: float) -> None:
    pause = select.poll()
    while _banners(console) < 2:
        assert time.perf_counter() - begun < DEADLINE_S, "it does not run again"
        pause.poll(1)


def _banners(console: Path) -> int:
    return console.read_bytes().count(BANNER)
