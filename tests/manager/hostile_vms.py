"""Requests about VMs that must be refused and change nothing."""

import json
from typing import Any

from tests.manager.hostile import BAD_BODIES, HUGE, JSON, LONG, Hostile

BAD_VM_FIELDS: dict[str, list[Any]] = {
    "name": [
        "", "-", "-a", "a-", "A", "a b", "a_b", "a.b", "..", "../x", "a/b", "%2e%2e", "x" * 64,
        LONG, "ä", "a\n", "a\r\nX: y", "💥", "\u202e", 1, 1.5, True, [], {}, "$(id)", "; rm -rf /",
        "' OR 1=1 --",
    ],
    "vcpu": [0, -1, 33, 2**31, 2**63, 2**64, HUGE, 1.5, "1", "", True, None, [], {}, "0x1"],
    "mem_mib": [0, -1, 15, 2**21, 2**63, HUGE, 256.5, "256", True, None, [], {}],
    "kernel": ["", "..", "../../etc/passwd", "/etc/passwd", "A", "x" * 129, LONG, 1, True, [], {}],
    "initrd": ["", "../x", "/dev/zero", 1, False, []],
    "rootfs": ["", "../x", "/dev/sda", "file:///etc/passwd", 1, False, {}],
    "kernel_args": ["\n", "a\tb", "é", "x" * 1025, 1, [], {"a": 1}],
    "tags": [
        [], "x", 1, {"": "x"}, {"a b": "x"}, {"a": 1}, {"a": None}, {"a": "\n"}, {"a": "x" * 256},
        {"../x": "y"}, {f"k{number}": "v" for number in range(65)},
    ],
    "start": ["true", 1, 0, None, [], "yes"],
    "user_data": [1, [], {}, "x" * 65537],
    "ssh_keys": ["x", 1, [1], [""], ["short"], ["ssh-rsa \n" + "A" * 40], ["k" * 20] * 33, {}],
    "host_path": ["/etc/passwd"],
    "id": ["0193c5e4-0000-7000-8000-000000000000"],
    "project": ["other"],
    "drives": [
        [{"path": "/etc/shadow"}], {}, "x", [1], [None], [{"name": "data"}],
        [{"name": "../x", "size_mib": 1}], [{"name": "a/b", "size_mib": 1}],
        [{"name": "rootfs", "size_mib": 1}], [{"name": "config", "size_mib": 1}],
        [{"name": "A", "size_mib": 1}], [{"name": "a\n", "size_mib": 1}],
        [{"name": "x" * 17, "size_mib": 1}], [{"name": "a", "size_mib": 0}],
        [{"name": "a", "size_mib": HUGE}], [{"name": "a", "size_mib": 2**40}],
        [{"name": "a", "size_mib": "1"}], [{"name": "a", "image": "../../etc/shadow"}],
        [{"name": "a", "image": "/dev/sda"}], [{"name": "a", "size_mib": 1, "read_only": True}],
        [{"name": "a", "size_mib": 1, "path_on_host": "/etc/shadow"}],
        [{"name": "a", "size_mib": 1}] * 2,
        [{"name": "a", "volume": "../x"}], [{"name": "a", "volume": "nope"}],
        [{"name": "a", "volume": "x", "size_mib": 1}], [{"name": "a", "volume": "x", "image": "y"}],
        [{"name": f"d{number}", "size_mib": 1} for number in range(9)],
        [{"name": "a", "size_mib": 1, "limits": {"iops": 0}}],
        [{"name": "a", "size_mib": 1, "limits": {"bandwidth_mib_s": 1e400}}],
        [{"name": "a", "size_mib": 1, "limits": {"bandwidth_mib_s": -1}}],
    ],
    "nics": [
        [], {}, "eth0", [1], [{}] * 9, [{"mac": "00:00:00:00:00:00"}], [{"ip": "10.0.0.1"}],
        [{"tap": "lo"}], [{"limits": {"rx_mbit_s": 0}}], [{"limits": {"tx_mbit_s": HUGE}}],
        [{"limits": {"rx_mbit_s": "1"}}], [{"limits": []}],
    ],
    "balloon": [
        {"target_mib": -1}, {"target_mib": 2**40}, {"target_mib": 1.5}, {"target_mib": 256}, 1, [],
        {"deflate_on_oom": 1}, {"stats_interval_s": -1}, {"amount_mib": 1},
    ],
    "rootfs_size_mib": [0, -1, HUGE, 2**40, "1", 1.5, True, [], {}],
    "count": [0, -1, 1001, HUGE, "2", 1.5, True, [], {}],
    "ttl": [0, -1, HUGE, "60", 1.5, True, [], {}],
    "expires_at": [
        "", "soon", "2030-01-01", "2001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59", "2030-01-01T00:00:00", 1893456000, "1893456000", True, [], {},
    ],
    "restart_policy": ["", "sometimes", "ALWAYS", 1, True, None, [], {}],
    "rootfs_limits": [1, [], {"iops": 0}, {"iops": HUGE}, {"x": 1}],
}  # fmt: skip

BAD_DEVICE_CHANGES: list[tuple[str, Any]] = [
    *[
        (f"/drives/{name}", {"size_mib": 1})
        for name in (
            "", "..", "%2e%2e", "..%2f..%2fvm", "a%00", "a%0a", "A", "x" * 17, "config", "rootfs",
            "%ff", "1", "a/b", "drive-a.img",
        )
    ],
    *[
        ("/drives/data", body)
        for body in (
            {}, {"limits": {}}, {"size_mib": None}, {"size_mib": 0}, {"size_mib": HUGE},
            {"path_on_host": "/etc/shadow"}, {"limits": {"iops": -1}}, {"drive_id": "x"}, [], 1,
            {"size_mib": 1, "image": "x"}, {"limits": {"bandwidth_mib_s": "1"}},
        )
    ],
    *[(f"/nics/{iface}", {"limits": None}) for iface in ("eth0", "eth99", "lo", "..", "%00", "")],
    *[("/nics/eth0", body) for body in ({}, {"limits": {}}, {"limits": {"rx_mbit_s": -1}}, 1)],
    *[
        ("/balloon", body)
        for body in ({}, {"target_mib": None}, {"target_mib": -1}, {"target_mib": HUGE}, [], None)
    ],
    ("/balloon?wait=soon", {"target_mib": 1}),
    ("/balloon?wait=applied&timeout_s=nan", {"target_mib": 1}),
]  # fmt: skip

BAD_VM_ACTIONS: list[Any] = [
    {}, {"action": "stop"}, {"action": "explode", "ids": ["a"]}, {"action": "stop", "ids": []},
    {"action": "stop", "ids": ["..", "%00"]}, {"action": "stop", "ids": "a"},
    {"action": "stop", "ids": ["a"] * 1001}, {"action": "stop", "selector": {}},
    {"action": "stop", "selector": {"a b": "c"}}, {"action": "stop", "selector": {"a": "\n"}},
    {"action": "stop", "ids": ["a"], "selector": {"a": "b"}}, {"ids": ["a"]}, [], 1, None,
    {"action": "stop", "ids": ["a"], "stop_timeout_s": HUGE},
    {"action": "stop", "ids": ["a"], "force": 1}, {"action": "stop", "ids": ["a"], "x": 1},
]  # fmt: skip

BAD_VM_QUERIES = [
    ("GET", "/logs?tail=-1"),
    ("GET", "/logs?tail=x"),
    ("GET", "/logs?tail=1.5"),
    ("GET", f"/logs?tail={10**30}"),
    ("GET", "/logs?tail=10001"),
    ("GET", "/logs?source="),
    ("GET", "/logs?source=/etc/passwd"),
    ("GET", "/logs?source=../console"),
    ("GET", "/logs?follow=perhaps"),
    ("GET", "/events?cursor=-1"),
    ("GET", "/events?cursor=x"),
    ("GET", f"/events?cursor={10**30}"),
    ("GET", f"/events?cursor={2**63}"),
    ("GET", "/events?limit=0"),
    ("GET", "/events?follow=1&state=asleep"),
    ("POST", "/start?wait=soon"),
    ("POST", "/start?wait="),
    ("POST", "/start?wait=running&timeout_s=0"),
    ("POST", "/start?wait=running&timeout_s=-1"),
    ("POST", "/start?wait=running&timeout_s=nan"),
    ("POST", "/start?wait=running&timeout_s=inf"),
    ("POST", "/start?wait=running&timeout_s=1e9"),
    ("POST", "/start?wait=running&timeout=0"),
    ("POST", "/start?wait=running&timeout=nan"),
    ("POST", "/start?wait=running&timeout=-inf"),
    ("POST", "/start?wait=running&timeout=601"),
    ("POST", "/stop?timeout_s=-1"),
    ("POST", "/stop?timeout_s=nan"),
    ("POST", "/stop?force=perhaps"),
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("DELETE", "?wait=never"),
    ("DELETE", "?timeout_s=x"),
    ("GET", "/console"),
    ("GET", "/start"),
    ("POST", "/reboot-the-host"),
    ("POST", "/../../start"),
    ("GET", "/logs/../../../etc/passwd"),
]


def vm_requests(vm: str) -> list[Hostile]:
    """All of them; ``vm`` is one that is there."""
    made = [
        Hostile("POST", "/v1/vms", [*JSON], json.dumps({name: value}).encode())
        for name, values in BAD_VM_FIELDS.items()
        for value in values
    ]
    made += [Hostile(method, f"/v1/vms/{vm}{rest}") for method, rest in BAD_VM_QUERIES]
    made += [
        Hostile("PATCH", f"/v1/vms/{vm}{path}", [*JSON], json.dumps(body).encode())
        for path, body in BAD_DEVICE_CHANGES
    ]
    made += [Hostile("PATCH", f"/v1/vms/{vm}/balloon", [*JSON], body) for body in BAD_BODIES]
    made += [
        Hostile("PATCH", f"/v1/vms/{vm}", [*JSON], json.dumps({name: value}).encode())
        for name in ("name", "tags", "id", "project", "drives", "restart_policy")
        for value in [*BAD_VM_FIELDS[name], None]
    ]
    made += [
        Hostile("PATCH", f"/v1/vms/{vm}", [*JSON], json.dumps({name: value}).encode())
        for name in ("ttl", "expires_at")
        for value in BAD_VM_FIELDS[name]
    ]
    made += [
        Hostile("POST", "/v1/vms/actions", [*JSON], json.dumps(body).encode())
        for body in BAD_VM_ACTIONS
    ]
    made += [Hostile("POST", "/v1/vms/actions", [*JSON], body) for body in BAD_BODIES]
    made += [Hostile("PATCH", f"/v1/vms/{vm}", [*JSON], body) for body in BAD_BODIES]
    return made
