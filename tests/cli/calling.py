"""Calling ``nexus`` as a user does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.client.wire import TOKEN, Wire
from tests.forked import nexus


def environment(wire: Wire, token: str = TOKEN) -> dict[str, str]:
    return {"NEXUS_URL": wire.url, "NEXUS_TOKEN": token, "PATH": "/usr/bin:/bin", "COLUMNS": "100"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nexus", *arguments]


def call(
    wire: Wire, *arguments: str, token: str = TOKEN, stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command to its end, as a process of its own."""
    return nexus.run(arguments, environment(wire, token), stdin=stdin, cwd=cwd)


def done(wire: Wire, *arguments: str) -> str:
    """What the command prints; it must succeed."""
    ended = call(wire, *arguments)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode()


def done_json(wire: Wire, *arguments: str) -> Any:
    return json.loads(done(wire, *arguments))
