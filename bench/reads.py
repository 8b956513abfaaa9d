"""Reading VMs, authenticated, from a manager on SQLite that holds 1,000 of them."""

import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import anyio

from bench.table import Table
from nexus.manager.config import Settings
from nexus.manager.db.columns import StoredNic
from nexus.manager.db.session import Database
from nexus.manager.db.tables import VmRow
from tests.manager.rows import host_row, image_row, vm_row

VMS = 1000
WARM_UP = 20


def measure(folder: Path, rounds: int) -> Table:
    """Every kind of read in turn, over one kept-alive connection."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "NEXUS_DATA_DIR": str(folder),
        "MANAGER_IMAGE_ROOT": str(folder),
        "MANAGER_BIND": f"127.0.0.1:{port}",
        "NEXUS_AGENT_URL": f"unix:{folder / 'no-agent.sock'}",
    }
    vm = anyio.run(_fill, Settings.from_env(environment))
    with (folder / "manager.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nexus.manager"], env=os.environ | environment, stderr=log
        )
    try:
        connection = _connect(port)
        token = (folder / "admin.token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        _, etag = _get(connection, f"/v1/vms/{vm.id}", headers)
        reads = {
            "GET /healthz, for comparison": ("/healthz", {}),
            "GET one VM by id": (f"/v1/vms/{vm.id}", headers),
            "GET one VM by name": (f"/v1/vms/{vm.name}", headers),
            "GET one VM, If-None-Match → 304": (
                f"/v1/vms/{vm.id}",
                {**headers, "if-none-match": etag},
            ),
            "list of 100 out of 1,000": ("/v1/vms?limit=100", headers),
            "list of 100 by tag": ("/v1/vms?limit=100&tag=team=red", headers),
        }
        rows: dict[str, list[float]] = {name: [] for name in reads}
        for number in range(rounds + WARM_UP):
            for name, (path, sent) in reads.items():
                taken, _ = _get(connection, path, sent)
                if number >= WARM_UP:
                    rows[name].append(taken)
    finally:
        process.terminate()
        process.wait(timeout=30)
    return Table("Reads of a manager with 1,000 VMs on SQLite", rows, next(iter(rows)))


async def _fill(settings: Settings) -> VmRow:
    """1,000 VMs that need nothing done; answers the one in the middle."""
    db = Database(settings.database_url)
    await db.migrate()
    host, image = host_row(), image_row("kernel")
    vms = [vm_row(f"vm-{number}", host, image) for number in range(VMS)]
    for number, vm in enumerate(vms):
        vm.tags = {"team": "red" if number % 2 else "blue", "tier": "web", "number": str(number)}
        vm.initrd = vm.rootfs = vm.kernel
        vm.drives = []
        vm.nics = [
            StoredNic(
                iface="eth0",
                mac="06:00:0a:4d:00:05",
                ip=f"10.77.{number // 256}.{number % 256}/16",
                gateway="10.77.0.1",
                dns=["10.77.0.1"],
                tap=f"t{number}",
            )
        ]
    async with db.write() as session:
        session.add_all([host, image])
        await session.flush()
        session.add_all(vms)
    await db.close()
    return vms[VMS // 2]


def _connect(port: int) -> http.client.HTTPConnection:
    deadline = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            _get(connection, "/healthz", {})
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "the manager did not start"
            continue
        return connection


def _get(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str]
) -> tuple[float, str]:
    """Milliseconds until the whole answer is there, and its ETag."""
    begun = time.perf_counter()
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    taken = (time.perf_counter() - begun) * 1000
    assert answer.status in (200, 304), (path, answer.status)
    return taken, answer.headers.get("etag", "")
