"""A VM taken from a template's pool: what is left to do is a resume."""

import time
from pathlib import Path

import httpx

from bench.create import MEM_MIB
from bench.table import Table
from tests.integration.installation import Installation, wait_for
from tests.parts import cached_tiny_kernel

POOL = 2


def measure(folder: Path, rounds: int) -> Table:
    """The pool is full before each one is taken."""
    rows: dict[str, list[float]] = {
        "POST /v1/templates/…/instantiate → 201": [],
        "POST /v1/templates/…/instantiate?wait=running → 201": [],
    }
    with (
        Installation(folder / "d", 18198, "firecracker") as installation,
        installation.http() as http,
    ):
        installation.register("kernel", "tiny", cached_tiny_kernel())
        spec = {"kernel": "tiny", "mem_mib": MEM_MIB}
        body = {"name": "quick", "spec": spec, "preboot": True, "pool": POOL}
        assert http.post("/v1/templates", json=body).status_code == 201
        url = "/v1/templates/quick/instantiate"
        assert http.post(f"{url}?wait=running", json={"name": "first"}).status_code == 201
        for number in range(rounds):
            for query, taken in zip(("", "?wait=running"), rows.values(), strict=True):
                wait_for("the pool is full", lambda: _pooled(http) == POOL)
                name = f"p{number}{'w' if query else ''}"
                begun = time.perf_counter()
                made = http.post(f"{url}{query}", json={"name": name})
                taken.append((time.perf_counter() - begun) * 1000)
                item = made.json()["item"]
                assert item["origin"], item
                assert not query or item["state"] == "running", item
                http.delete(f"/v1/vms/{name}?wait=deleted")
    return Table("A VM of a pool, tiny guest on Firecracker", rows, next(iter(rows)))


def _pooled(http: httpx.Client) -> int:
    found = http.get("/v1/templates/quick/preboots").json()["items"]
    return sum(each["pooled"] for each in found)
