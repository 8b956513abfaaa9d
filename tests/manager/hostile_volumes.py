"""Requests about volumes that must be refused and change nothing."""

import json
from typing import Any

from tests.manager.hostile import BAD_BODIES, BAD_REFS, HUGE, JSON, Hostile

BAD_VOLUMES: list[Any] = [
    {"name": "a"}, {"size_mib": 1}, {"name": "../x", "size_mib": 1}, {"name": "A", "size_mib": 1},
    {"name": "x" * 64, "size_mib": 1}, {"name": "a", "size_mib": 0}, {"name": "a", "size_mib": "1"},
    {"name": "a", "size_mib": HUGE}, {"name": "a", "size_mib": 1.5}, {"name": None, "size_mib": 1},
    {"name": "a", "size_mib": 1, "path": "/etc/shadow"}, {"name": "a", "size_mib": 1, "id": "x"},
]  # fmt: skip

BAD_CHANGES: dict[str, list[Any]] = {
    "attach": [
        {}, {"vm": None}, {"vm": ""}, {"vm": "../x"}, {"vm": "nobody"}, {"vm": ["victim"]},
        {"vm": "victim", "name": "config"}, {"vm": "victim", "name": "rootfs"},
        {"vm": "victim", "name": "../x"}, {"vm": "victim", "name": "x" * 17},
        {"vm": "victim", "read_only": "yes"}, {"vm": "victim", "restart": 1},
        {"vm": "victim", "path": "/etc/shadow"},
    ],
    "detach": [{"restart": "yes"}, {"restart": None}, {"vm": "victim"}, {"force": True}],
    "snapshot": [{}, {"name": None}, {"name": "../x"}, {"name": "A"}, {"name": "x" * 64}],
    "": [
        {}, {"name": None}, {"name": ""}, {"size_mib": None}, {"size_mib": 0}, {"size_mib": "9"},
        {"size_mib": HUGE}, {"size_mib": 1.5}, {"host_id": "x"}, {"vm_id": None},
    ],
}  # fmt: skip


def volume_requests() -> list[Hostile]:
    """All of them; there is no volume."""
    made = [
        Hostile("POST", "/v1/volumes", [*JSON], json.dumps(body).encode()) for body in BAD_VOLUMES
    ]
    made += [Hostile("POST", "/v1/volumes", [*JSON], body) for body in BAD_BODIES]
    made += [
        Hostile(method, f"/v1/volumes/{ref}") for method in ("GET", "DELETE") for ref in BAD_REFS
    ]
    for action, bodies in BAD_CHANGES.items():
        method, rest = ("POST", f"/{action}") if action else ("PATCH", "")
        made += [
            Hostile(method, f"/v1/volumes/data{rest}", [*JSON], json.dumps(body).encode())
            for body in bodies
        ]
        made += [Hostile(method, f"/v1/volumes/data{rest}", [*JSON], b) for b in BAD_BODIES]
        good = json.dumps({"vm": "victim"} if action == "attach" else {"name": "fine"}).encode()
        if action != "detach":
            made += [Hostile(method, f"/v1/volumes/{ref}{rest}", [*JSON], good) for ref in BAD_REFS]
    return made
