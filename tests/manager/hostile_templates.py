"""What an attacker sends where templates are: no good body, no good name, nothing that is there."""

import json
from collections.abc import Iterator
from typing import Any

from tests.manager.hostile import BAD_BODIES, BAD_REFS, JSON, Hostile
from tests.manager.hostile_vms import BAD_VM_FIELDS

BAD_TEMPLATES: list[Any] = [
    {}, {"name": "../x"}, {"name": "A"}, {"name": "x" * 64}, {"name": 1}, {"name": None},
    {"name": "a", "spec": []}, {"name": "a", "spec": None}, {"name": "a", "note": "x\ny"},
    {"name": "a", "note": "x" * 256}, {"name": "a", "from_vm": "../x"}, {"name": "a", "id": "x"},
    {"name": "a", "from_vm": "nobody"}, {"name": "a", "spec": {"name": "b"}},
    {"name": "a", "spec": {"count": 2}}, {"name": "a", "version": 1},
]  # fmt: skip
BAD_USES: list[Any] = [
    {"version": 0}, {"version": -1}, {"version": 1 << 40}, {"version": "1"}, {"count": 0},
    {"name": "../x"}, {"template": "x"}, {"name": "of-nothing"},
]  # fmt: skip
BAD_ROLLOUTS: list[Any] = [
    {"batch": 0}, {"batch": "0%"}, {"batch": "101%"}, {"batch": "x"}, {"batch": 1.5}, {"batch": []},
    {"max_failures": -1}, {"pause_s": -1}, {"pause_s": 1e9}, {"health": "fine"}, {"timeout_s": 0},
    {"steady_s": "1"}, {"selector": {"": ""}}, {"selector": []}, {"version": 0}, {"x": 1}, {},
]  # fmt: skip
NOT_FIELDS = {"name", "count", "expires_at"}


def template_requests() -> Iterator[Hostile]:
    """Requests that must be refused and change nothing."""

    def post(path: str, body: Any) -> Hostile:
        return Hostile("POST", path, [*JSON], json.dumps(body).encode())

    for body in BAD_TEMPLATES:
        yield post("/v1/templates", body)
    for name, values in BAD_VM_FIELDS.items():
        for value in values if name not in NOT_FIELDS else values[:2]:
            yield post("/v1/templates", {"name": "a", "spec": {name: value}})
            yield post("/v1/templates/nothing/instantiate", {name: value})
    for body in BAD_USES:
        yield post("/v1/templates/nothing/instantiate", body)
    for raw in BAD_BODIES:
        yield Hostile("POST", "/v1/templates", [*JSON], raw)
        yield Hostile("PATCH", "/v1/templates/nothing", [*JSON], raw)
    for ref in BAD_REFS:
        for method in ("GET", "DELETE"):
            yield Hostile(method, f"/v1/templates/{ref}")
        for action in ("halt", "resume", "cancel", "rollback"):
            yield Hostile("POST", f"/v1/rollouts/{ref}/{action}")
        yield Hostile("GET", f"/v1/rollouts/{ref}")
        yield Hostile("GET", f"/v1/rollouts/{ref}/vms")
    for body in BAD_ROLLOUTS:
        yield post("/v1/templates/nothing/rollouts", body)
    for number in ("0", "-1", "x", "1e9", str(1 << 40), "%00", ".."):
        yield Hostile("GET", f"/v1/templates/nothing/versions/{number}")
        yield Hostile("GET", f"/v1/templates/nothing/diff?before={number}")
