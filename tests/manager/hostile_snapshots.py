"""What an attacker sends where snapshots are: bad bodies, bad names, archives that are none."""

import json
from collections.abc import Iterator
from typing import Any

from nexus.api.archives import END, MANIFEST, META, entry, header
from tests.manager.hostile import BAD_BODIES, BAD_REFS, HUGE, JSON, Hostile
from tests.manager.hostile_guests import OCTETS
from tests.manager.hostile_vms import BAD_VM_FIELDS

BAD_SNAPSHOTS: list[Any] = [
    {"name": "../x"}, {"name": "A"}, {"name": "x" * 64}, {"name": 1}, {"name": ["a"]},
    {"kind": "half"}, {"kind": 1}, {"kind": None}, {"parent_id": "x"}, {"path": "/etc"}, [], 1,
]  # fmt: skip
BAD_RESTORES: list[Any] = [
    {}, {"snapshot": "../x"}, {"snapshot": 1}, {"snapshot": None}, {"snapshot": "nothing"},
    {"snapshot": "nothing", "start": "yes"}, {"snapshot": "a", "path": "/etc"},
]  # fmt: skip
BAD_SCHEDULES: list[Any] = [
    {}, {"every": 0, "keep": 1}, {"every": 59, "keep": 1}, {"every": HUGE, "keep": 1},
    {"every": "60", "keep": 1}, {"every": 60.5, "keep": 1}, {"every": 60}, {"keep": 1},
    {"every": 60, "keep": 0}, {"every": 60, "keep": HUGE}, {"every": 60, "keep": 1, "x": 1},
]  # fmt: skip
BAD_ARCHIVES = [
    b"", b"x", bytes(512), bytes(4096), b"PK\x03\x04" + bytes(2000), b"\x1f\x8b" + bytes(2000),
    entry(MANIFEST, b""), entry(MANIFEST, b"{}"), entry(MANIFEST, b"[" * 100_000),
    entry(META, b"{}") + END, header(MANIFEST, 1 << 50), header("/etc/passwd", 10),
    entry(MANIFEST, b'{"format": 1, "blueprint": {}}') + END, header("../" + MANIFEST, 2),
]  # fmt: skip
CLONE_FIELDS = ("name", "tags", "start", "count", "ttl", "host_path", "id", "project")


def snapshot_requests(vm: str) -> Iterator[Hostile]:
    """Requests that must be refused and change nothing."""

    def send(method: str, path: str, body: Any) -> Hostile:
        return Hostile(method, path, [*JSON], json.dumps(body).encode())

    for body in BAD_SNAPSHOTS:
        yield send("POST", f"/v1/vms/{vm}/snapshots", body)
    for body in BAD_RESTORES:
        yield send("POST", f"/v1/vms/{vm}/restore", body)
    for body in BAD_SCHEDULES:
        yield send("PUT", f"/v1/vms/{vm}/snapshot-schedule", body)
    for field in CLONE_FIELDS:
        for value in BAD_VM_FIELDS[field]:
            yield send("POST", "/v1/snapshots/nothing/instantiate", {field: value})
    for networks in ([], ["../x"], [1], "default", ["a"] * 9):
        yield send("POST", "/v1/snapshots/nothing/instantiate", {"networks": networks})
    for raw in BAD_BODIES:
        yield Hostile("POST", f"/v1/vms/{vm}/snapshots", [*JSON], raw)
        yield Hostile("POST", "/v1/snapshots/nothing/instantiate", [*JSON], raw)
        yield Hostile("PATCH", "/v1/snapshots/nothing", [*JSON], raw)
    for ref in BAD_REFS:
        for method in ("GET", "DELETE"):
            yield Hostile(method, f"/v1/snapshots/{ref}")
        yield Hostile("GET", f"/v1/snapshots/{ref}/export")
        yield Hostile("GET", f"/v1/vms/{ref}/snapshots")
        yield Hostile("GET", f"/v1/vms/{ref}/snapshot-schedule")
    for query in ("state=gone", "vm=../x", "name=%00", "limit=0", "cursor=x", "vm="):
        yield Hostile("GET", f"/v1/snapshots?{query}")
    for archive in BAD_ARCHIVES:
        yield Hostile("POST", "/v1/snapshots/import", [OCTETS], archive)
    for query in ("name=../x", "host=../x", "name=", "name=A"):
        yield Hostile("POST", f"/v1/snapshots/import?{query}", [OCTETS], entry(MANIFEST, b"{}"))
