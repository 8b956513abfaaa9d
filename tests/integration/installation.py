"""A whole installation, run by ``nexus up`` as a script would run it."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests import forked
from tests.parts import CACHE, REPO, tree

T = TypeVar("T")
START_TIMEOUT_S = 240


def wait_for(
    what: str, check: Callable[[], T | None], timeout_s: float = 60, poll_s: float = 0.02
) -> T:
    """The first true answer of ``check``; an AssertionError that says what never came true."""
    deadline = time.monotonic() + timeout_s
    pause = select.poll()
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        pause.poll(poll_s * 1000)


@dataclass
class Installation:
    """``nexus up`` in one data folder. Use as a context manager: it ends with ``nexus down``."""

    data: Path
    port: int
    engine: str
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    ready: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> "Installation":
        self.up()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self.down()

    @property
    def env(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("NEXUS_", "MANAGER_"))}
        return {
            **clean,
            "NEXUS_CACHE_DIR": str(CACHE / "packages"),
            "FC_BINARY": str(CACHE / "bin" / "firecracker"),
            "JAILER_BINARY": str(CACHE / "bin" / "jailer"),
            **self.environment,
        }

    def nexus(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "nexus", *arguments]

    def up(self) -> None:
        bind = f"127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            self.nexus(
                *("up", "--data", str(self.data), "--bind", bind),
                *("--engine", self.engine, "-o", "json"),
            ),
            cwd=REPO,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_TIMEOUT_S)
        line = self.process.stdout.readline() if readable else ""
        if not line:
            self.process.kill()
            raise AssertionError(f"nexus up failed: {self.process.communicate()[1]}")
        self.ready = json.loads(line)

    def stop(self) -> None:
        """What Ctrl-C does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.communicate(timeout=30)

    def down(self) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.nexus("down", "--data", str(self.data)),
            cwd=REPO,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    def cli(self, *arguments: str, code: int = 0, timeout: float = 90) -> str:
        """Runs the CLI against this installation and returns its standard output."""
        done = subprocess.run(
            self.nexus("--data", str(self.data), *arguments),
            cwd=REPO,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def forked_cli(self, *arguments: str, code: int = 0) -> str:
        """The same, without the interpreter's start: for those that run many commands."""
        done = forked.nexus.run(["--data", str(self.data), *arguments], self.env)
        assert done.returncode == code, (arguments, done)
        return done.stdout.decode()

    def http(self) -> httpx.Client:
        token = Path(self.ready["token_file"]).read_text().strip()
        return httpx.Client(
            base_url=self.ready["url"],
            headers={"authorization": f"Bearer {token}"},
            timeout=90,
            trust_env=False,
        )

    def register(self, kind: str, name: str, file: Path) -> None:
        """Copies a file under the image root and registers it."""
        root = Path(self.ready["image_root"])
        target = root / f"{kind}-{name}"
        target.write_bytes(file.read_bytes())
        with self.http() as http:
            answer = http.post(
                "/v1/images", json={"kind": kind, "name": name, "host_path": str(target)}
            )
        assert answer.status_code == 201, answer.text


def service_pid(installation: Installation, module: str) -> int | None:
    """The service that this installation's supervisor runs at the moment."""
    assert installation.process is not None
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(status[1]) == installation.process.pid and module.encode() in command[-2:]:
            return int(entry.name)
    return None


def machine_state(data: Path) -> dict[str, Any]:
    """What VMs may leave on a machine: processes, links, rules, mounts, files of the run folder."""
    return {
        "processes": sorted(_processes_of(data)),
        "links": sorted(link["ifname"] for link in _json("ip", "-j", "link", "show")),
        "routes": [
            # The kernel notes the loss of a bridge's carrier some time after the last TAP went.
            {name: value for name, value in route.items() if name != "flags"}
            for route in _json("ip", "-j", "route", "show")
        ],
        "rules": sorted(
            _without_handles(_json("nft", "-j", "list", "ruleset"))["nftables"],
            # Stable: a table that is replaced moves behind the others, its rules keep their order.
            key=_table_of,
        ),
        "mounts": [
            # Others on this machine, tests that run beside among them, mount what they like.
            mount
            for mount in Path("/proc/self/mounts").read_text().splitlines()
            if str(data) in mount
        ],
        "files": [path for path in tree(data / "fc") if "vms" in path],
        "forward": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    }


def wait_until_as(before: dict[str, Any], data: Path) -> None:
    """Waits until the machine is what it was; fails with what is not."""

    def different() -> dict[str, tuple[Any, Any]]:
        now = machine_state(data)
        return {name: (before[name], now[name]) for name in now if now[name] != before[name]}

    try:
        wait_for("the machine is as before", lambda: not different())
    except AssertionError as late:
        raise AssertionError(f"was, and is: {different()}") from late


def _processes_of(data: Path) -> list[str]:
    """VMMs of one installation: what has its working directory, or an argument, in the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            cwd = str((entry / "cwd").readlink())
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if cwd.startswith(str(data / "fc")):
            found.append(command)
    return found


def _json(*command: str) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def _table_of(entry: dict[str, Any]) -> tuple[str, str]:
    (what,) = entry.values()
    return str(what.get("family", "")), str(what.get("table", what.get("name", "")))


def _without_handles(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_handles(v) for k, v in value.items() if k != "handle"}
    if isinstance(value, list):
        return [_without_handles(v) for v in value]
    return value
