"""A VM made from a snapshot, beside bare Firecracker that loads the same memory and resumes."""

import json
import os
import select
import socket
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from bench.create import MEM_MIB
from bench.table import Table
from tests.integration.installation import Installation
from tests.parts import cached_tiny_kernel, find_binary

DEADLINE_S = 60.0
TAP = "bench"


def measure(folder: Path, rounds: int, many_rounds: int, count: int) -> list[Table]:
    """One at a time, many at once, and what the clones cost in memory; bare and Nexus in turn."""
    one: dict[str, list[float]] = {
        "bare spawn, snapshot/load and resume → 204": [],
        "POST instantiate → the guest goes on": [],
        "POST instantiate → 201": [],
        "POST instantiate?wait=running → 201": [],
    }
    many: dict[str, list[float]] = {
        f"bare loop, one after the other → {count} resumed": [],
        f"POST instantiate count={count} → {count} go on": [],
        f"POST instantiate count={count}&wait=running → 201": [],
    }
    memory: dict[str, list[float]] = {
        "PSS of a bare clone": [],
        "PSS of a clone": [],
        "RSS of a bare clone": [],
        "RSS of a clone": [],
    }
    folder.mkdir()
    firecracker = find_binary("FC_BINARY", "firecracker")
    with Installation(folder / "d", 18197, "firecracker") as installation:
        installation.register("kernel", "tiny", cached_tiny_kernel())
        with installation.http() as http:
            snapshot = _snapshot(http)
            files = installation.data / "fc" / "snapshots" / snapshot
            for number in range(rounds + 1):
                with Bare(firecracker, files, folder / f"one-{number}", 1) as bare:
                    taken = bare.load()
                sample = [taken, *_one_ms(http, snapshot, f"o{number}")]
                if number:
                    for row, value in zip(one.values(), sample, strict=True):
                        row.append(value)
            for number in range(many_rounds + 1):
                with Bare(firecracker, files, folder / f"many-{number}", count) as bare:
                    sample = [bare.load()]
                    bare_kib = bare.memory_kib()
                waited, goes_on, kib = _many_ms(http, snapshot, f"m{number}", count)
                sample += [goes_on, waited]
                if number:
                    for row, value in zip(many.values(), sample, strict=True):
                        row.append(value)
                    for row, value in zip(
                        memory.values(),
                        (bare_kib[0], kib[0], bare_kib[1], kib[1]),
                        strict=True,
                    ):
                        row.append(value / 1024)
    return [
        Table("A VM made from a snapshot, tiny guest on Firecracker", one, next(iter(one))),
        Table(f"{count} VMs of one snapshot in one request", many, next(iter(many))),
        Table(f"What each of {count} clones holds", memory, next(iter(memory)), unit="MiB"),
    ]


def _snapshot(http: httpx.Client) -> str:
    """A snapshot of a VM that runs, and no VM."""
    body = {"name": "source", "kernel": "tiny", "mem_mib": MEM_MIB}
    made = http.post("/v1/vms?wait=running", json=body)
    assert made.status_code == 201, made.text
    taken = http.post("/v1/vms/source/snapshots?wait=ready", json={"name": "base"})
    assert taken.status_code == 201, taken.text
    assert taken.json()["item"]["state"] == "ready", taken.text
    http.delete("/v1/vms/source?wait=deleted")
    answer: str = taken.json()["id"]
    return answer


def _one_ms(http: httpx.Client, snapshot: str, name: str) -> tuple[float, float, float]:
    """Milliseconds until the guest goes on, as its host saw it; until 201; until 201 with wait.

    Nobody asks how things are meanwhile: that would take what the VMM needs of two processors.
    """
    url = f"/v1/snapshots/{snapshot}/instantiate"
    begun = time.perf_counter()
    created = http.post(url, json={"name": f"{name}a"})
    answered = (time.perf_counter() - begun) * 1000
    assert created.status_code == 201, created.text
    _running(http, created.json()["id"])
    at, begun = time.time(), time.perf_counter()
    waited = http.post(f"{url}?wait=running", json={"name": f"{name}b"})
    running = (time.perf_counter() - begun) * 1000
    assert waited.json()["item"]["state"] == "running", waited.text
    goes_on = (_started(waited.json()["item"]) - at) * 1000
    _delete(http, [created.json()["id"], waited.json()["id"]])
    return goes_on, answered, running


def _many_ms(
    http: httpx.Client, snapshot: str, name: str, count: int
) -> tuple[float, float, tuple[float, float]]:
    """Milliseconds until 201 with wait, and until the last guest goes on; a VMM's PSS and RSS."""
    at, begun = time.time(), time.perf_counter()
    created = http.post(
        f"/v1/snapshots/{snapshot}/instantiate?wait=running",
        json={"name": name, "count": count},
        timeout=DEADLINE_S * 2,
    )
    waited = (time.perf_counter() - begun) * 1000
    assert created.status_code == 201, created.text
    items = created.json()["items"]
    assert {item["state"] for item in items} == {"running"}
    goes_on = (max(map(_started, items)) - at) * 1000
    kib = _memory_kib([item["pid"] for item in items])
    _delete(http, [item["id"] for item in items])
    return waited, goes_on, kib


def _running(http: httpx.Client, vm_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        item: dict[str, Any] = http.get(f"/v1/vms/{vm_id}").json()["item"]
        if item["state"] == "running":
            return item
        assert time.monotonic() < deadline, item
        select.poll().poll(5)


def _started(item: dict[str, Any]) -> float:
    return datetime.fromisoformat(item["started_at"]).timestamp()


def _delete(http: httpx.Client, ids: list[str]) -> None:
    body = {"action": "delete", "ids": ids}
    gone = http.post("/v1/vms/actions?wait=deleted", json=body, timeout=DEADLINE_S * 2)
    assert all(item["ok"] for item in gone.json()["items"]), gone.text


def _memory_kib(pids: list[int]) -> tuple[float, float]:
    """The mean PSS and RSS of processes. PSS shares what is shared among those who share it."""
    sums = {"Pss:": 0, "Rss:": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(" ")
            if name in sums:
                sums[name] += int(rest.split()[0])
    return sums["Pss:"] / len(pids), sums["Rss:"] / len(pids)


class Bare:
    """Firecrackers that load a snapshot one after the other and run until the end of the block.

    Folders, links to the files and TAPs are there before the clock runs.
    """

    def __init__(self, firecracker: Path, files: Path, folder: Path, count: int) -> None:
        self._firecracker = firecracker
        self._folders = [folder / str(number) for number in range(count)]
        self._running: list[subprocess.Popen[bytes]] = []
        for number, each in enumerate(self._folders):
            each.mkdir(parents=True)
            os.link(files / "mem", each / "mem")
            os.link(files / "state", each / "state")
            _ip("tuntap", "add", f"{TAP}{number}", "mode", "tap")

    def __enter__(self) -> "Bare":
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()
        for number in range(len(self._folders)):
            _ip("link", "delete", f"{TAP}{number}")

    def load(self) -> float:
        """Milliseconds until the last one is resumed."""
        begun = time.perf_counter()
        for number, folder in enumerate(self._folders):
            self._running.append(
                subprocess.Popen(
                    [self._firecracker, "--api-sock", "api.sock"],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            _load(folder / "api.sock", f"{TAP}{number}")
        return (time.perf_counter() - begun) * 1000

    def memory_kib(self) -> tuple[float, float]:
        return _memory_kib([process.pid for process in self._running])


def _load(api: Path, tap: str) -> None:
    body = json.dumps(
        {
            "snapshot_path": "state",
            "mem_backend": {"backend_type": "File", "backend_path": "mem"},
            "network_overrides": [{"iface_id": "eth0", "host_dev_name": tap}],
            "resume_vm": True,
        }
    ).encode()
    head = f"PUT /snapshot/load HTTP/1.1\r\nHost: bare\r\nContent-Length: {len(body)}\r\n\r\n"
    deadline = time.monotonic() + DEADLINE_S
    pause = select.poll()
    while True:
        with socket.socket(socket.AF_UNIX) as door:
            try:
                door.connect(str(api))
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "no API"
                pause.poll(0.2)
                continue
            door.sendall(head.encode() + body)
            answer = door.recv(4096)
            assert b" 204 " in answer.split(b"\r\n")[0], answer
            return


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
