"""The native proxy to a VM's own API, under attack and under strain."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from nexus.api.machines import Machine, MachineStatus
from tests.agent.harness import Agent, until
from tests.agent.proxy_corpus import BAD_PATHS, REFUSED, bad_sockets

pytestmark = [pytest.mark.firecracker, pytest.mark.root]

VM_CALLS = "The API server received"


@pytest.fixture
def vm(agent: Agent, tiny_kernel: Path) -> tuple[Machine, MachineStatus]:
    machine = agent.machine(tiny_kernel)
    status = agent.put(machine)
    assert status.state == "running"
    return machine, status


def base(machine: Machine) -> str:
    return f"/agent/v1/vms/{machine.id}/proxy"


def raw(agent: Agent, method: str, target: str, body: bytes = b"") -> tuple[int, dict[str, object]]:
    """One request exactly as it is written here; clients tidy addresses up."""
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        wire.settimeout(60)
        wire.connect(str(agent.socket))
        wire.sendall(head.encode() + body)
        answer = b""
        while chunk := wire.recv(1 << 16):
            answer += chunk
    first, _, rest = answer.partition(b"\r\n\r\n")
    status = int(first.split()[1])
    return status, json.loads(rest) if rest and method != "HEAD" else {}


def calls(agent: Agent, machine: Machine) -> int:
    """How many requests the VMM has seen, by its own log."""
    log = agent.run_dir / "vms" / machine.id / "root" / "vmm.log"
    return log.read_text().count(VM_CALLS)


def test_hostile_paths_never_reach_the_vmm(agent: Agent, vm: tuple[Machine, MachineStatus]) -> None:
    machine, _ = vm
    assert len(set(BAD_PATHS)) >= 60
    before = calls(agent, machine)
    wrong = []
    for path in BAD_PATHS:
        for method in ("GET", "PUT", "PATCH"):
            status, body = raw(agent, method, f"{base(machine)}/{path}", b"{}" * (method != "GET"))
            if not 400 <= status < 500 or not {"error", "message", "request_id"} <= body.keys():
                wrong.append((method, path[:80], status, body))
    assert wrong == []
    assert calls(agent, machine) == before


def test_hostile_sockets_never_reach_any_vmm(
    agent: Agent, vm: tuple[Machine, MachineStatus], tiny_kernel: Path
) -> None:
    machine, status = vm
    other = agent.machine(tiny_kernel)
    other_socket = agent.put(other).socket
    (Path(status.socket).parent / "link.sock").symlink_to(other_socket)
    corpus = bad_sockets(status.socket, other_socket)
    assert len(set(corpus)) >= 60
    before = [calls(agent, each) for each in (machine, other)]
    wrong = []
    for value in corpus:
        code, body = raw(agent, "GET", f"{base(machine)}/?sock={value}")
        if code not in (400, 403) or "error" not in body:
            wrong.append((value[:80], code, body))
    for name in ("SOCK", "Sock", "sock%20", "sock[]", "socket", "path", "%73ock"):
        code, _ = raw(agent, "GET", f"{base(machine)}/?{name}={other_socket}")
        if code not in (400, 403):
            wrong.append((name, code))
    assert wrong == []
    assert [calls(agent, each) for each in (machine, other)] == before
    assert raw(agent, "GET", f"{base(machine)}/?sock={status.socket}")[0] == 200


def test_a_socket_that_a_vmm_has_swapped_is_not_spoken_to(
    agent: Agent, vm: tuple[Machine, MachineStatus], tiny_kernel: Path
) -> None:
    machine, status = vm
    other = agent.machine(tiny_kernel)
    other_socket = Path(agent.put(other).socket)
    own = Path(status.socket)
    before = calls(agent, other)
    own.unlink()
    own.symlink_to(other_socket)
    assert raw(agent, "GET", f"{base(machine)}/")[0] == 403
    own.unlink()
    # The same without a link: a hard link, and a server of somebody else's.
    own.hardlink_to(other_socket)
    assert raw(agent, "GET", f"{base(machine)}/")[0] == 403
    own.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(own))
        server.listen()
        code, body = raw(agent, "PATCH", f"{base(machine)}/vm", b'{"state":"Paused"}')
        assert (code, body["error"]) == (403, "path_refused")
    assert calls(agent, other) == before
    # Nor does the agent's own business follow it: the VM is killed, not the other one.
    agent.delete(machine.id)
    assert agent.get(other.id).state == "running"


def test_methods(agent: Agent, vm: tuple[Machine, MachineStatus]) -> None:
    machine, _ = vm
    for method, path in REFUSED:
        assert raw(agent, method, f"{base(machine)}/{path}", b"{}")[0] == 403, path
    before = calls(agent, machine)
    for path, allowed in (("", "GET"), ("vm", "PATCH"), ("vm/config", "GET"), ("actions", "PUT")):
        for method in ("GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "PATCH", "DELETE"):
            if method == allowed:
                continue
            answer = agent.http.request(method, f"{base(machine)}/{path}")
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed), (method, path)
    for method in ("BREW", "get", "CONNECT", "PROPFIND"):
        assert 400 <= raw(agent, method, f"{base(machine)}/vm")[0] < 500
    assert calls(agent, machine) == before


def test_bodies_are_bounded(agent: Agent, vm: tuple[Machine, MachineStatus]) -> None:
    machine, _ = vm
    url = f"{base(machine)}/mmds"
    head = f"PUT {url} HTTP/1.1\r\nHost: x\r\n"
    # Refused before a byte of it came, and while it comes.
    for announced, sent in (
        ("Content-Length: 51201\r\n\r\n", b""),
        ("Content-Length: 99999999999\r\n\r\n", b""),
        ("Transfer-Encoding: chunked\r\n\r\n", b"4000\r\n" + b"x" * 0x4000 + b"\r\n"),
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
            wire.settimeout(30)
            wire.connect(str(agent.socket))
            wire.sendall((head + announced).encode())
            with contextlib.suppress(BrokenPipeError):
                for _ in range(8 if sent else 0):
                    wire.sendall(sent)
            assert wire.recv(1 << 16).split()[1] == b"413", announced
    before = calls(agent, machine)
    assert agent.http.request("GET", f"{base(machine)}/", content=b"{}").status_code == 400
    hidden = '{"drive_id": "rootfs", "path_on\\u005fhost": "/etc/shadow"}'
    answer = agent.http.patch(f"{base(machine)}/drives/rootfs", content=hidden)
    assert answer.status_code == 403
    assert calls(agent, machine) == before


def test_what_was_paused_through_the_proxy_stays_paused(
    agent: Agent, vm: tuple[Machine, MachineStatus]
) -> None:
    machine, _ = vm
    url = f"{base(machine)}/vm"
    assert agent.http.patch(url, json={"state": "Paused"}).status_code == 204
    assert agent.get(machine.id).state == "paused"
    # An agent that comes back does not take it back either.
    agent.kill()
    agent.start()
    found = until("it is found", lambda: agent.get(machine.id))
    assert found.state == "paused"
    assert agent.http.patch(url, json={"state": "Resumed"}).status_code == 204
    assert agent.get(machine.id).state == "running"
    # What the VMM refuses changes nothing of what is wanted.
    assert agent.http.patch(url, json={"state": "Asleep"}).status_code == 400
    assert agent.http.patch(url, json={"state": "Paused", "x": 1}).status_code == 400
    assert agent.put(machine).state == "running"


def test_a_vmm_that_hangs_is_504_and_one_that_is_gone_502(
    agent: Agent, vm: tuple[Machine, MachineStatus]
) -> None:
    machine, status = vm
    assert status.pid is not None
    os.kill(status.pid, signal.SIGSTOP)
    answer = agent.http.get(f"{base(machine)}/")
    assert (answer.status_code, answer.json()["error"]) == (504, "timed_out")
    os.kill(status.pid, signal.SIGCONT)
    assert agent.http.get(f"{base(machine)}/").status_code == 200
    os.kill(status.pid, signal.SIGKILL)
    until("it is gone", lambda: agent.get(machine.id).state == "stopped")
    answer = agent.http.get(f"{base(machine)}/")
    assert (answer.status_code, answer.json()["error"]) == (502, "host_unreachable")
    assert answer.json()["suggestion"]


def test_a_client_that_hangs_up_breaks_the_call_off(
    agent: Agent, vm: tuple[Machine, MachineStatus]
) -> None:
    machine, status = vm
    assert status.pid is not None
    os.kill(status.pid, signal.SIGSTOP)
    until("it stands still", lambda: stands_still(status.pid))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        wire.connect(str(agent.socket))
        wire.sendall(f"GET {base(machine)}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        until("the agent calls", lambda: waiting_calls() == 1)
    began = time.monotonic()
    # The VMM's backlog still holds it, closed: nobody writes or waits any more.
    until("the call is broken off", lambda: '"status": 499' in agent.log.read_text())
    assert time.monotonic() - began < 9
    os.kill(status.pid, signal.SIGCONT)
    assert agent.http.get(f"{base(machine)}/").status_code == 200


def stands_still(pid: int | None) -> bool:
    """Whether every thread was stopped: one that was not could accept a call."""
    stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def waiting_calls() -> int:
    """Connections to VMMs of this network namespace that are not accepted yet."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    # VMMs name their socket by its path from their directory. 02: connecting.
    return sum(line[-1] == "api.sock" and line[5] == "02" for line in lines)


class Chatty(threading.Thread):
    """A VMM that answers without end."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(str(path))
        self.server.listen()
        self.sent = 0

    def run(self) -> None:
        peer, _ = self.server.accept()
        with peer, contextlib.suppress(OSError):
            peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                peer.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                self.sent += 0x10000


@pytest.mark.anyio
async def test_answers_are_bounded(tmp_path: Path) -> None:
    from nexus.agent import proxy
    from nexus.api.errors import HostUnreachable
    from nexus.vmm.client import VmmClient
    from nexus.vmm.wire import MAX_ANSWER_BYTES

    chatty = Chatty(tmp_path / "v.sock")
    chatty.start()
    with pytest.raises(HostUnreachable):
        await proxy.relay(VmmClient(tmp_path / "v.sock"), "GET", "/mmds", b"")
    chatty.join(timeout=30)
    chatty.server.close()
    assert not chatty.is_alive()
    assert chatty.sent < MAX_ANSWER_BYTES + (4 << 20)
