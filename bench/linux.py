"""POST → a Linux guest answers over the network, on ``nexus-qemu``: booted, and from a snapshot."""

import time
from pathlib import Path

import httpx

from bench.table import Table
from tests.integration.installation import Installation, wait_for
from tests.parts import cached_linux_images


def measure(folder: Path, rounds: int) -> Table:
    cached_linux_images()
    rows: dict[str, list[float]] = {
        "POST /v1/vms → HTTP answer of the guest": [],
        "POST /v1/vms?wait=running → 201": [],
        "POST instantiate → HTTP answer under its own address and name": [],
        "POST instantiate?wait=running → 201": [],
    }
    answered, running, cloned, loaded = rows.values()
    with (
        Installation(folder / "d", 18192, "qemu") as installation,
        installation.http() as http,
        httpx.Client(timeout=0.3, trust_env=False) as guest,
    ):
        for number in range(rounds):
            body = {"name": f"l{number}", "rootfs": "busybox", "mem_mib": 128}
            begun = time.perf_counter()
            created = http.post("/v1/vms?wait=running", json=body)
            running.append((time.perf_counter() - begun) * 1000)
            vm = created.json()["item"]
            url = f"http://{vm['nics'][0]['ip'].partition('/')[0]}/"
            wait_for("the guest answers", lambda url=url: _page(guest, url), poll_s=0.005)
            answered.append((time.perf_counter() - begun) * 1000)
            if number < rounds - 1:
                http.delete(f"/v1/vms/{vm['id']}?wait=deleted")
        taken = http.post(f"/v1/vms/{vm['id']}/snapshots?wait=ready", json={"name": "base"})
        assert taken.json()["item"]["state"] == "ready", taken.text
        http.delete(f"/v1/vms/{vm['id']}?wait=deleted")
        for number in range(rounds):
            name = f"clone-{number}"
            begun = time.perf_counter()
            url = "/v1/snapshots/base/instantiate?wait=running"
            created = http.post(url, json={"name": name})
            loaded.append((time.perf_counter() - begun) * 1000)
            vm = created.json()["item"]
            url = f"http://{vm['nics'][0]['ip'].partition('/')[0]}/"
            wait_for("it is itself", lambda u=url, n=name: n in _page(guest, u), poll_s=0.005)
            cloned.append((time.perf_counter() - begun) * 1000)
            http.delete(f"/v1/vms/{vm['id']}?wait=deleted")
    return Table("A Linux VM on nexus-qemu, one at a time", rows, next(iter(rows)))


def _page(guest: httpx.Client, url: str) -> str:
    try:
        return guest.get(url).text
    except httpx.TransportError:
        return ""
