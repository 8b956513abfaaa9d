"""Firecracker's own API through the manager, to a real VM and under the same attack."""

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.proxy_corpus import BAD_PATHS, REFUSED, bad_sockets
from tests.integration.installation import Installation, wait_for

pytestmark = [pytest.mark.root, pytest.mark.firecracker]

Vm = dict[str, Any]


@pytest.fixture
def vms(firecracker_installation: Installation) -> Iterator[list[Vm]]:
    """Two VMs with the tiny guest."""
    with firecracker_installation.http() as http:
        made = [
            http.post("/v1/vms?wait=running", json={"name": name, "kernel": "tiny", "mem_mib": 32})
            for name in ("attacked", "other")
        ]
        yield [answer.json()["item"] for answer in made]
        for answer in made:
            http.delete(f"/v1/vms/{answer.json()['id']}?wait=deleted")


def calls(vm: Vm) -> int:
    """How many requests the VMM has seen, by its own log."""
    log = Path(vm["socket"]).parent / "vmm.log"
    return log.read_text().count("The API server received")


def raw(installation: Installation, method: str, target: str, body: bytes) -> tuple[int, bytes]:
    """One request exactly as it is written here."""
    token = Path(installation.ready["token_file"]).read_text().strip()
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", installation.port), timeout=60) as wire:
        wire.sendall(head.encode() + body)
        answer = http.client.HTTPResponse(wire, method=method)
        answer.begin()
        return answer.status, answer.read()


def test_the_corpus_gets_no_further_than_the_manager_and_agent(
    firecracker_installation: Installation, vms: list[Vm]
) -> None:
    attacked, other = vms
    base = f"/v1/vms/{attacked['id']}/firecracker"
    before = [calls(vm) for vm in vms]
    wrong = []

    def expect(statuses: range, method: str, target: str, body: bytes = b"") -> None:
        status, answer = raw(firecracker_installation, method, target, body)
        try:
            said = json.loads(answer)
        except ValueError:
            said = {}
        if status not in statuses or not {"error", "message", "request_id"} <= said.keys():
            wrong.append((method, target[len(base) :][:80], status, answer[:200]))

    for path in BAD_PATHS:
        expect(range(400, 500), "GET", f"{base}/{path}")
        expect(range(400, 500), "PATCH", f"{base}/{path}", b"{}")
    for method, path in REFUSED:
        expect(range(403, 404), method, f"{base}/{path}", b"{}")
    for method in ("POST", "DELETE", "OPTIONS", "TRACE"):
        expect(range(405, 406), method, f"{base}/vm", b"{}")
    expect(range(405, 406), "PUT", f"{base}/vm", b"{}")
    for value in bad_sockets(attacked["socket"], other["socket"]):
        expect(range(400, 404), "GET", f"{base}/?sock={value}")
    expect(range(413, 414), "PUT", f"{base}/mmds", b'"' + b"x" * 52_000 + b'"')
    assert wrong == []
    assert [calls(vm) for vm in vms] == before


def test_what_is_changed_past_us_is_shown_and_stays(
    firecracker_installation: Installation, vms: list[Vm]
) -> None:
    vm, _ = vms
    url = f"/v1/vms/{vm['id']}"
    with firecracker_installation.http() as http:
        limiter = {"bandwidth": {"size": 1000, "refill_time": 100}}
        nic = {"iface_id": "eth0", "rx_rate_limiter": limiter}
        answer = http.patch(f"{url}/firecracker/network-interfaces/eth0", json=nic)
        assert answer.status_code == 204, answer.text
        assert http.patch(f"{url}/firecracker/vm", json={"state": "Paused"}).status_code == 204
        assert http.get(url).json()["item"]["state"] == "paused"
        # Something else is wanted of it meanwhile: neither the pause nor the limit goes.
        assert http.patch(url, json={"tags": {"a": "b"}}).status_code == 200
        why = http.get(f"{url}/why").json()["item"]
        assert (why["state"], why["actor"]) == ("paused", "admin")
        assert http.post(f"{url}/resume?wait=running").status_code == 200
        config = http.get(f"{url}/firecracker/vm/config").json()
        (shown,) = config["network-interfaces"]
        assert shown["rx_rate_limiter"]["bandwidth"]["size"] == 1000


def test_a_vmm_that_hangs_is_504_and_a_guest_that_panicked_is_told(
    firecracker_installation: Installation, vms: list[Vm]
) -> None:
    vm, _ = vms
    url = f"/v1/vms/{vm['id']}"
    with firecracker_installation.http() as http:
        pid = http.get(url).json()["item"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        answer = http.get(f"{url}/firecracker/")
        assert (answer.status_code, answer.json()["error"]) == (504, "timed_out")
        os.kill(pid, signal.SIGCONT)
        log = f"{url}/logs?source=console"
        wait_for("the banner", lambda: "nexus-tiny ready" in http.get(log).text)
        folder = Path(vm["socket"]).parent.parent
        with (folder / "console.in").open("w") as console:
            console.write("P")
        wait_for("the panic", lambda: http.get(url).json()["item"]["state"] == "error")
        answer = http.get(f"{url}/firecracker/")
        assert (answer.status_code, answer.json()["error"]) == (502, "host_unreachable")
    text = firecracker_installation.cli("why", "attacked")
    assert "attacked ended while it ran: the guest's kernel panicked: asked to by a key" in text
    assert "nexus logs attacked --source console" in text
    assert "the guest's kernel panicked" in firecracker_installation.cli("show", "attacked")
    firecracker_installation.cli("start", "attacked")
    firecracker_installation.cli("rm", "-f", "attacked")
    assert "attacked was deleted" in firecracker_installation.cli("why", "attacked")
