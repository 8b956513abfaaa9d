"""A VM's whole life on one host, with real Firecracker and the tiny guest."""

import json
import os
import re
import signal
import time
from pathlib import Path

import anyio
import httpx
import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

from nexus.api.machines import AgentEvent, Blob, Machine
from nexus.ids import new_id
from tests.agent.harness import Agent, links, until

pytestmark = [pytest.mark.firecracker, pytest.mark.root]


def changed(machine: Machine, **change: object) -> Machine:
    """The next generation of a desired machine."""
    return machine.model_copy(update={"generation": machine.generation + 1, **change})


def disk(agent: Agent) -> Blob:
    image = agent.dir / "root.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
        file.write(b"first")
    return agent.blob(image)


def test_a_whole_life(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel, rootfs=disk(agent))
    status = agent.put(machine)
    assert (status.state, status.boot, status.error) == ("running", 1, None)
    assert status.pid in agent.vmms(machine.id)
    until("the banner", lambda: "nexus-tiny ready devices=3" in "".join(agent.console(machine.id)))

    again = agent.put(machine)
    assert again.pid == status.pid
    assert len(agent.vmms(machine.id)) == 1

    machine = changed(machine, power="paused")
    assert agent.put(machine).state == "paused"
    machine = changed(machine, power="running")
    assert agent.put(machine).state == "running"

    root = agent.run_dir / "vms" / machine.id / "root"
    assert (root / "v.sock").is_socket()
    (root / "rootfs.ext4").write_bytes(b"written by the guest")
    machine = changed(machine, power="stopped")
    stopped = agent.put(machine)
    assert (stopped.state, stopped.exit_cause, stopped.pid) == ("stopped", "stopped", None)
    assert agent.vmms() == []
    assert not (root / "api.sock").exists()
    assert not (root / "v.sock").exists()

    machine = changed(machine, power="running", boot=2)
    started = agent.put(machine)
    assert (started.state, started.boot, started.exit_cause) == ("running", 2, None)
    assert (root / "rootfs.ext4").read_bytes().startswith(b"written by the guest")

    rebooted = agent.put(changed(machine, boot=3))
    assert (rebooted.state, rebooted.boot) == ("running", 3)
    assert rebooted.pid != started.pid

    agent.delete(machine.id)
    agent.delete(machine.id)
    agent.delete(new_id())
    assert agent.http.get(f"/agent/v1/vms/{machine.id}").status_code == 404


def test_nothing_is_left_after_a_life(agent: Agent, tiny_kernel: Path) -> None:
    rootfs = disk(agent)
    before = agent.traces()
    for _ in range(20):
        machine = agent.machine(tiny_kernel, rootfs=rootfs)
        agent.put(machine)
        agent.put(changed(machine, power="stopped"))
        agent.put(changed(machine, power="running", boot=2, generation=3))
        agent.delete(machine.id)
        assert agent.traces() == before


def test_prepared_only(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel, rootfs=disk(agent), power="stopped", boot=0)
    status = agent.put(machine)
    assert (status.state, status.boot, status.pid) == ("configured", 0, None)
    assert agent.vmms() == []
    assert agent.put(changed(machine, power="running", boot=1)).state == "running"


def test_older_generations_are_refused(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel, generation=5)
    agent.put(machine)
    stale = machine.model_copy(update={"generation": 4, "power": "stopped"})
    answer = agent.http.put(
        f"/agent/v1/vms/{machine.id}",
        content=stale.model_dump_json(),
        headers={"content-type": "application/json"},
    )
    assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
    assert agent.get(machine.id).state == "running"


def test_a_guest_that_powers_itself_off_is_not_started_again(
    agent: Agent, tiny_kernel: Path
) -> None:
    machine = agent.machine(tiny_kernel)
    agent.put(machine)
    agent.type(machine.id, b"q")
    status = until("the end", lambda: _if_state(agent, machine.id, "stopped"))
    assert (status.exit_cause, status.error) == ("guest_poweroff", None)
    assert agent.put(machine).state == "stopped"
    assert agent.put(changed(machine, boot=2)).state == "running"


def test_a_crash_is_seen_at_once_and_told(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    pid = agent.put(machine).pid
    assert pid is not None
    with agent.http.stream("GET", "/agent/v1/events") as stream:
        events = (AgentEvent.model_validate_json(line) for line in stream.iter_lines())
        assert next(events).type == "status"
        assert next(events).type == "synced"
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        status = next(e.status for e in events if e.status and e.status.state == "stopped")
        took_s = time.monotonic() - begun
    assert status.exit_cause == "crashed"
    assert status.error is not None
    assert status.error.stage == "run"
    assert "signal 9" in status.error.message
    assert took_s < 0.2


def _if_state(agent: Agent, vm_id: str, state: str):  # type: ignore[no-untyped-def]
    status = agent.get(vm_id)
    return status if status.state == state else None


def test_a_guest_that_does_not_listen_is_killed(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    pid = agent.put(machine).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    status = agent.put(changed(machine, power="stopped", stop_timeout_s=0))
    assert (status.state, status.exit_cause) == ("stopped", "killed")
    assert time.monotonic() - begun < 8


def test_a_paused_vm_stops_gracefully(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    agent.put(machine)
    # A guest that is still starting has no ear for Ctrl-Alt-Del yet.
    until("the banner", lambda: "ready" in "".join(agent.console(machine.id)))
    machine = changed(machine, power="paused")
    agent.put(machine)
    assert agent.put(changed(machine, power="stopped")).exit_cause == "stopped"


def test_a_guest_that_does_not_listen_yet_is_asked_again(agent: Agent, tiny_kernel: Path) -> None:
    deaf = "console=ttyS0 tiny.deaf tiny.deaf"
    machine = agent.machine(tiny_kernel, kernel_args=deaf, stop_timeout_s=60)
    agent.put(machine)
    until("the banner", lambda: "ready" in "".join(agent.console(machine.id)))
    assert agent.put(changed(machine, power="stopped")).exit_cause == "stopped"


def test_a_bad_kernel_is_told_in_firecrackers_words(agent: Agent, tmp_path: Path) -> None:
    junk = tmp_path / "kernel"
    junk.write_bytes(b"not a kernel" * 100)
    machine = agent.machine(junk)
    status = agent.put(machine)
    assert status.state == "error"
    assert status.error is not None
    assert status.error.stage == "boot"
    assert "elf" in (status.error.fault_message or "").lower()
    assert status.error.suggestion
    assert status.error.log_tail
    assert agent.vmms() == []
    agent.delete(machine.id)


def test_a_missing_image_is_told(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel, rootfs=Blob(sha256="a" * 64, size_bytes=1))
    status = agent.put(machine)
    assert (status.state, status.boot) == ("error", 0)
    assert status.error is not None
    assert status.error.stage == "disk"
    rootfs = disk(agent)
    assert agent.put(changed(machine, rootfs=rootfs)).state == "running"


def test_console_both_ways(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    agent.put(machine)
    with websockets.sync.client.unix_connect(
        str(agent.socket), f"ws://agent/agent/v1/vms/{machine.id}/console"
    ) as console:
        seen = b""
        # Before its banner the guest throws keys away.
        while b"nexus-tiny ready" not in seen:
            seen += bytes(console.recv(timeout=30))
        console.send(b"zwj")
        while not set(b"zwj") <= set(seen):
            seen += bytes(console.recv(timeout=30))
        agent.delete(machine.id)
        for _ in console:  # What is left, and then its end.
            pass
        with pytest.raises(ConnectionClosed):
            console.recv(timeout=1)


def test_the_console_of_nothing(agent: Agent) -> None:
    for vm_id in (new_id(), "nonsense"):
        with pytest.raises(Exception, match=r"403|4404|rejected"):
            websockets.sync.client.unix_connect(
                str(agent.socket), f"ws://agent/agent/v1/vms/{vm_id}/console"
            )


def test_logs_are_followed(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    agent.put(machine)
    console = agent.run_dir / "vms" / machine.id / "console.log"
    # All of it: the rest of a line would be the first that is followed.
    until("the banner", lambda: re.search(rb"ready devices=\d+\r\n", console.read_bytes()))
    offset = agent.http.get(f"/agent/v1/vms/{machine.id}/logs").json()["offset"]
    url = f"/agent/v1/vms/{machine.id}/logs/stream?offset={offset}"
    with agent.http.stream("GET", url) as stream:
        agent.type(machine.id, b"e")
        begun = time.monotonic()
        assert b"e" in next(stream.iter_raw())
        assert time.monotonic() - begun < 1
    vmm = agent.http.get(f"/agent/v1/vms/{machine.id}/logs?source=vmm&tail=500").json()
    assert any("Running Firecracker" in line for line in vmm["lines"])


def test_the_native_proxy(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    status = agent.put(machine)
    base = f"/agent/v1/vms/{machine.id}/proxy"
    assert agent.http.get(f"{base}/").json()["state"] == "Running"
    assert agent.http.get(f"{base}/", params={"sock": status.socket}).status_code == 200
    for other in ("/etc/passwd", f"{status.socket}/../api.sock", "", status.socket + "%00"):
        answer = agent.http.get(f"{base}/", params={"sock": other})
        assert (answer.status_code, answer.json()["error"]) == (403, "path_refused")
    refused = agent.http.put(f"{base}/actions", json={"action_type": "InstanceStart"})
    assert refused.status_code == 400
    assert "after starting" in refused.json()["fault_message"]
    assert agent.http.patch(f"{base}/vm", json={"state": "Paused"}).status_code == 204
    assert agent.get(machine.id).state == "paused"
    assert agent.http.get(f"{base}/nope").status_code == 404
    assert agent.http.delete(f"{base}/vm").status_code == 405
    agent.put(changed(machine, power="stopped"))
    assert agent.http.get(f"{base}/").status_code == 502


def test_a_vmm_that_hangs_is_a_time_out(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    pid = agent.put(machine).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    answer = agent.http.get(f"/agent/v1/vms/{machine.id}/proxy/")
    assert (answer.status_code, answer.json()["error"]) == (504, "timed_out")
    agent.delete(machine.id)


def test_hostile_requests_are_4xx(agent: Agent) -> None:
    http = agent.http
    good = new_id()
    for method, path, body in [
        ("GET", "/agent/v1/vms/..%2f..%2fetc", None),
        ("GET", "/agent/v1/vms/%ff", None),
        ("PUT", f"/agent/v1/vms/{good}", b"{"),
        ("PUT", f"/agent/v1/vms/{good}", b"[]"),
        ("PUT", f"/agent/v1/vms/{good}", b"\xff"),
        ("PUT", f"/agent/v1/vms/{good}", b"x" * (2 << 20)),
        ("GET", f"/agent/v1/vms/{good}/logs?tail=-1", None),
        ("GET", f"/agent/v1/vms/{good}/logs?source=/etc/passwd", None),
        ("DELETE", "/agent/v1/vms/not-an-id", None),
        ("GET", f"/agent/v1/vms/{good}/proxy/..%2f", None),
    ]:
        headers = {"content-type": "application/json"}
        answer = http.request(method, path, content=body, headers=headers)
        assert 400 <= answer.status_code < 500, (method, path, answer.text)
        assert set(answer.json()) >= {"error", "message", "status", "request_id"}


def test_what_the_host_says_of_itself(agent: Agent) -> None:
    inventory = agent.http.get("/agent/v1/inventory").json()
    assert inventory["engine"] == "firecracker"
    assert inventory["engine_version"].startswith("1.")
    bridge = inventory["network"]["bridge"]
    # Another name when another installation on this machine has that one.
    assert bridge.startswith("fcbr")
    assert bridge in links()
    capacity = agent.http.get("/agent/v1/capacity").json()
    assert capacity["vcpus"] >= 1
    assert capacity["mem_available_mib"] <= capacity["mem_mib"]
    assert oct(agent.socket.stat().st_mode & 0o777) == "0o600"


def test_many_at_once(agent: Agent, tiny_kernel: Path) -> None:
    machines = [agent.machine(tiny_kernel, nics=[]) for _ in range(20)]

    async def all_at_once() -> list[str]:
        states: list[str] = []
        transport = httpx.AsyncHTTPTransport(uds=str(agent.socket))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://agent", timeout=60
        ) as http:

            async def put(machine: Machine) -> None:
                answer = await http.put(
                    f"/agent/v1/vms/{machine.id}", json=json.loads(machine.model_dump_json())
                )
                states.append(answer.json()["state"])

            async with anyio.create_task_group() as tasks:
                for machine in machines:
                    tasks.start_soon(put, machine)
        return states

    assert anyio.run(all_at_once) == ["running"] * 20
    assert len(agent.vmms()) == 20
