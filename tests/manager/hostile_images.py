"""Requests about images that must be refused and change nothing."""

import json
from typing import Any

from tests.manager.hostile import JSON, LONG, Hostile

BAD_IMAGE_PATHS: list[Any] = [
    "", ".", "..", "/", "//", "../x", "../../etc/passwd", "/etc/passwd", "/etc/shadow", "/dev/zero",
    "/dev/stdin", "/proc/self/root/etc/passwd", "/proc/self/environ", "/proc/self/fd/0",
    "/sys/kernel", "fifo", "empty", "out", "none", "disk/..", "disk/../disk", "x/" * 2000,
    "x" * 300, LONG, "~/x", "file:///etc/passwd", "http://127.0.0.1/", "\\\\host\\share",
    "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc%2fpasswd", "a\nb", "disk\n", "💥", 1, True, None,
    [], {}, ["disk"], {"path": "disk"},
]  # fmt: skip

BAD_IMAGES: list[dict[str, Any]] = [
    {},
    {"kind": "rootfs"},
    {"kind": "rootfs", "name": "x"},
    {"name": "x", "host_path": "disk"},
    *[
        {"kind": kind, "name": "x", "host_path": "disk"}
        for kind in ("", "ROOTFS", "disk", "kernel\n", 1, None, [], {}, True)
    ],
    *[
        {"kind": "rootfs", "name": name, "host_path": "disk"}
        for name in (
            "", "A", "-x", ".x", "..", "../x", "a/b", "x" * 129, LONG, "a b", "a\n", "ä", 1, None,
            [], "builds", "0193c5e4-0000-7000-8000-000000000000",
        )
    ],
    {"kind": "rootfs", "name": "x", "host_path": "disk", "sha256": "0" * 64},
    {"kind": "rootfs", "name": "x", "host_path": "disk", "project": "other"},
    {"kind": "kernel", "name": "x", "host_path": "disk"},
]  # fmt: skip


def image_requests() -> list[Hostile]:
    """All of them; some name files that are there."""
    made = [
        Hostile("POST", "/v1/images", [*JSON], json.dumps(body).encode()) for body in BAD_IMAGES
    ]
    made += [
        Hostile(
            "POST",
            "/v1/images",
            [*JSON],
            json.dumps({"kind": "rootfs", "name": "x", "host_path": path}).encode(),
        )
        for path in BAD_IMAGE_PATHS
    ]
    made += [
        Hostile("POST", "/v1/images/builds", [*JSON], json.dumps({"recipe": recipe}).encode())
        for recipe in (
            "",
            "BUSYBOX",
            "../x",
            "debian-of-old",
            "busybox; id",
            1,
            None,
            [],
            {},
            "--help",
        )
    ]
    return made
