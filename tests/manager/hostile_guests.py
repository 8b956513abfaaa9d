"""Hostile requests to the routes into guests."""

import json
from typing import Any

from tests.manager.hostile import BAD_BODIES, BAD_REFS, HUGE, JSON, Hostile

OCTETS: tuple[str, str | bytes] = ("content-type", "application/octet-stream")

BAD_PROGRAM_FIELDS: dict[str, list[Any]] = {
    "argv": [
        [], [""], "ls", [1], [None], [["ls"]], {}, ["a\x00b"], ["x" * 32769], ["x"] * 4097, True,
        ["ls", "\ud800"],
    ],
    "env": [
        [], "A=b", {"": "x"}, {"A=B": "x"}, {"1A": "x"}, {"A": 1}, {"A": None}, {"A": "a\x00b"},
        {"A\n": "x"}, {f"V{number}": "x" for number in range(257)},
    ],
    "cwd": ["", "relative", "..", "/a\x00b", "/" + "x" * 5000, 1, []],
    "user": ["", "-x", "a b", "../x", "root\n", "x" * 33, "a:b", 0, []],
    "stdin": [1, [], {}, "a\x00b"],
    "encoding": ["", "utf-8", "BASE64", 1, None],
    "timeout_s": [0, -1, 3601, 1e300, "1", None, [], HUGE],
    "tty": [True],
    "host_path": ["/etc/passwd"],
}  # fmt: skip

BAD_QUERIES = [
    ("GET", "/guest/x"),
    ("GET", "/exec"),
    ("PUT", "/exec"),
    ("POST", "/files?path=/x"),
    ("GET", "/files/mkdir?path=/x"),
    ("POST", "/files/mkdir?path=/x&mode=rwx"),
    ("POST", "/files/mkdir?path=/x&mode=-1"),
    ("POST", "/files/mkdir?path=/x&mode=99999999999"),
    *(
        (method, f"/files{which}{query}")
        for method, which in (
            ("GET", ""),
            ("PUT", ""),
            ("GET", "/stat"),
            ("GET", "/list"),
            ("POST", "/mkdir"),
        )
        for query in (
            "",
            "?path=",
            "?path=relative",
            "?path=..",
            "?path=%00",
            "?path=/a%00b",
            "?path=C:",
            f"?path=/{'x' * 5000}",
            "?path[]=/x",
            "?path=/x",
            "?path=/x&path=%2e%2e",
        )
    ),
]


def guest_requests(vm: str) -> list[Hostile]:
    """Programs and files that must get a 4xx from a VM that does not run, and change nothing."""
    made = [
        Hostile(
            "POST",
            f"/v1/vms/{vm}/exec",
            [*JSON],
            json.dumps({"argv": ["true"], name: value}).encode(),
        )
        for name, values in BAD_PROGRAM_FIELDS.items()
        for value in values
    ]
    made += [Hostile("POST", f"/v1/vms/{vm}/exec", [*JSON], body) for body in BAD_BODIES]
    made += [
        Hostile(
            "POST",
            f"/v1/vms/{vm}/exec",
            [*JSON],
            json.dumps({"argv": ["true"], "encoding": "base64", "stdin": stdin}).encode(),
        )
        for stdin in ("=", "a", "ä", "####", "YQ", "YQ==YQ==\n")
    ]
    made += [
        Hostile("PUT", f"/v1/vms/{vm}/files?path=/x&mode={mode}", [OCTETS], b"x")
        for mode in ("", "x", "-1", "8888", "77777", "0o644", "644.0", "%00")
    ]
    made += [
        Hostile("PUT", f"/v1/vms/{vm}/files?path=/x", [("content-type", kind)], b'{"x": NaN}')
        for kind in ("", "text/plain", "application/json", "application/octet-streams", "*/*")
    ]
    made += [Hostile("PUT", f"/v1/vms/{vm}/files?path=/x", [OCTETS], b"x" * (3 << 20))]
    made += [Hostile("PUT", f"/v1/vms/{ref}/files?path=/x", [OCTETS], b"x") for ref in BAD_REFS]
    made += [Hostile(method, f"/v1/vms/{vm}{rest}") for method, rest in BAD_QUERIES]
    return made
