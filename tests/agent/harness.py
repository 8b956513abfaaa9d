"""One agent as its users see it: a process with an environment, spoken to over its socket."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from nexus.api.machines import Blob, Machine, MachineNic, MachineStatus
from nexus.ids import new_id
from nexus.manager.ipam import mac_for
from tests.parts import REPO, tree

T = TypeVar("T")
DEADLINE_S = 30.0
COMMAND = (sys.executable, "-m", "nexus.agent")


def until(what: str, ask: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
    """The first true answer; fails with ``what`` when none comes in time."""
    last = time.monotonic() + deadline_s
    while time.monotonic() < last:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.005)
    raise AssertionError(f"not within {deadline_s} s: {what}")


class Agent:
    """An agent with a run directory of its own. ``start`` and ``kill`` may alternate."""

    def __init__(self, **environment: str) -> None:
        self._links_before = {*links()}
        self.dir = Path(tempfile.mkdtemp(prefix="nxa-"))
        self.run_dir = self.dir / "fc"
        self.store = self.dir / "store"
        self.socket = self.dir / "a.sock"
        self.log = self.dir / "agent.log"
        self.environment = {
            "FC_RUN_DIR": str(self.run_dir),
            "NEXUS_STORE_DIR": str(self.store),
            "AGENT_BIND": f"unix:{self.socket}",
            "NEXUS_ENGINE": "firecracker",
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None
        transport = httpx.HTTPTransport(uds=str(self.socket))
        self.http = httpx.Client(transport=transport, base_url="http://agent", timeout=60)

    def start(
        self, *, ready: bool = True, command: Sequence[str] = COMMAND, **environment: str
    ) -> "Agent":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=REPO,
                env={**os.environ, **self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        if ready:
            until("the agent answers", self.answers)
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return self.http.get("/agent/v1/health").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)
        self.process = None

    def teardown(self) -> None:
        self.kill()
        done = subprocess.run(
            [sys.executable, "-m", "nexus.agent", "--teardown"],
            cwd=REPO,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def close(self) -> None:
        self.http.close()
        try:
            self.teardown()
            # Here, where it is known whose it is: the next test would only find it.
            assert set(links()) <= self._links_before
        finally:
            shutil.rmtree(self.dir)

    # -- what the manager would ask ----------------------------------------------------------

    def blob(self, file: Path) -> Blob:
        """Puts a file into the image store."""
        from nexus.images.store import Store

        stored = Store(self.store).import_file(file)
        return Blob(sha256=stored.sha256, size_bytes=stored.size_bytes)

    def machine(self, kernel: Path, **change: Any) -> Machine:
        """A desired machine with the network this agent has."""
        network = self.http.get("/agent/v1/inventory").json()["network"]
        first, _, length = network["gateway"].rpartition(".")[0], "", network["cidr"][-2:]
        vm_id = new_id()
        octet = 2 + int(hashlib.sha256(vm_id.encode()).hexdigest()[:2], 16) % 250
        nic = MachineNic(
            iface="eth0",
            mac=mac_for(vm_id, "eth0"),
            ip=f"{first}.{octet}/{length}",
            gateway=network["gateway"],
            dns=[],
        )
        fields: dict[str, Any] = {
            "id": vm_id,
            "mem_mib": 32,
            "kernel": self.blob(kernel),
            "nics": [nic],
            "stop_timeout_s": 5.0,
        }
        return a_wish(**{**fields, **change})

    def put(self, machine: Machine) -> MachineStatus:
        answer = self.http.put(
            f"/agent/v1/vms/{machine.id}",
            content=machine.model_dump_json(),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 200, answer.text
        return MachineStatus.model_validate_json(answer.content)

    def get(self, vm_id: str) -> MachineStatus:
        answer = self.http.get(f"/agent/v1/vms/{vm_id}")
        assert answer.status_code == 200, answer.text
        return MachineStatus.model_validate_json(answer.content)

    def delete(self, vm_id: str) -> None:
        answer = self.http.delete(f"/agent/v1/vms/{vm_id}")
        assert (answer.status_code, answer.json()) == (200, {"ok": True}), answer.text

    def console(self, vm_id: str) -> list[str]:
        lines = self.http.get(f"/agent/v1/vms/{vm_id}/logs?tail=1000").json()["lines"]
        return [str(line).strip() for line in lines]

    def type(self, vm_id: str, keys: bytes) -> None:
        """Keys to a guest that is up: before its banner it throws them away."""
        until("the guest is up", lambda: "nexus-tiny ready" in "".join(self.console(vm_id)))
        fifo = os.open(self.run_dir / "vms" / vm_id / "console.in", os.O_RDWR | os.O_NONBLOCK)
        os.write(fifo, keys)
        os.close(fifo)

    # -- what lies about on the machine --------------------------------------------------------

    def vmms(self, vm_id: str | None = None) -> list[int]:
        """Living processes that work in this run directory."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                working = str((entry / "cwd").readlink())
            except OSError:
                continue
            ours = working.startswith(str(self.run_dir)) or any(
                str(self.run_dir).encode() in argument for argument in arguments
            )
            wanted = vm_id is None or vm_id.encode() in arguments
            if ours and wanted and b"--id" in arguments:
                found.append(int(entry.name))
        return found

    def traces(self) -> dict[str, list[str]]:
        """Everything that a VM could leave behind."""
        unix = Path("/proc/net/unix").read_text().splitlines()
        return {
            "processes": [str(pid) for pid in self.vmms()],
            "links": sorted(links()),
            "tables": tables(),
            "sockets": sorted(line.split()[-1] for line in unix if str(self.run_dir) in line),
            # Blanks are nobody's, and come and go.
            "files": [path for path in tree(self.run_dir) if not path.startswith("blanks")],
            "cgroups": sorted(str(p) for p in Path("/sys/fs/cgroup").glob("*/firecracker/*/")),
        }


@contextmanager
def agent_of(kind: type[Agent], firecracker: Path) -> Iterator[Agent]:
    """An agent that runs VMs in real Firecracker; nothing is left of it."""
    agent = kind(FC_BINARY=str(firecracker))
    try:
        yield agent.start()
    finally:
        agent.close()


def a_wish(**change: Any) -> Machine:
    """What might be wanted of a VM, where nothing is made of it."""
    blob = Blob(sha256="0" * 64, size_bytes=1)
    fields: dict[str, Any] = {
        "id": new_id(),
        "name": "one",
        "generation": 1,
        "power": "running",
        "boot": 1,
        "vcpu": 1,
        "mem_mib": 16,
        "kernel": blob,
        "initrd": None,
        "rootfs": None,
        "kernel_args": None,
        "nics": [],
        "user_data": None,
        "ssh_keys": [],
    }
    return Machine(**{**fields, **change})


def links() -> list[str]:
    done = subprocess.run(["ip", "-j", "link"], capture_output=True, check=True)
    return [str(link["ifname"]) for link in json.loads(done.stdout)]


def tables() -> list[str]:
    done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return sorted(done.stdout.splitlines())


def forwarding() -> str:
    return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()
