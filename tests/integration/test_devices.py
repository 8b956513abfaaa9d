"""Limits, sizes and the balloon of a VM as its Linux guest feels them."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nexus.api.devices import DriveChange, DriveLimits
from nexus.client import Client
from nexus.qemu.netdev import interface_counters
from tests.integration.installation import Installation, machine_state, wait_for

pytestmark = [pytest.mark.root, pytest.mark.qemu]

MIB = 1 << 20
MBIT = 125_000
CLOSE = 0.15
"""How far from its limit a throughput may be."""
TRIES = 10
"""A busy machine may keep a guest from its limit for a while; it never takes it above."""


@dataclass
class Shell:
    """The shell on a guest's serial console."""

    folder: Path
    asked: int = 0

    def begin(self, command: str) -> Callable[[], str]:
        """Types a command; what is returned waits for its end and gives what it printed."""
        self.asked += 1
        log = self.folder / "console.log"
        begun = log.stat().st_size
        # The console echoes what is typed; only the shell puts the mark together.
        first, last = f"<{self.asked}", f"{self.asked}>"
        with (self.folder / "console.in").open("w") as console:
            console.write(f"echo '<''{self.asked}'; {command}; echo '{self.asked}''>'\n")

        def printed() -> str | None:
            text = log.read_bytes()[begun:].decode(errors="replace").replace("\r", "")
            found = re.search(rf"^{first}\n(.*?)^{last}$", text, re.MULTILINE | re.DOTALL)
            return f"{found[1]} " if found else None

        return lambda: wait_for(f"{command} ends", printed)

    def run(self, command: str) -> str:
        """What a command prints."""
        return self.begin(command)()

    def seconds(self, command: str) -> float:
        """How long a command takes, by the guest's clock."""
        said = self.run(
            f"read a _ </proc/uptime; {command} >/dev/null 2>&1; read b _ </proc/uptime; echo $a $b"
        )
        begun, ended = said.split()
        return float(ended) - float(begun)


def obeys(limit: float, measure: Callable[[], float]) -> float:
    """Fails unless what is measured comes close to the limit, and never above."""
    seen = []
    for _ in range(TRIES):
        seen.append(measure() / limit)
        assert seen[-1] < 1 + CLOSE, seen
        if seen[-1] > 1 - CLOSE:
            return seen[-1]
    raise AssertionError(f"far below the limit: {seen}")


def bytes_a_second(shell: Shell, device: str, total: int, *, write: bool = False) -> float:
    count = total // (256 << 10)
    files = f"if=/dev/zero of={device} oflag" if write else f"if={device} of=/dev/null iflag"
    return total / shell.seconds(f"dd {files}=direct bs=256k count={count}")


def operations_a_second(shell: Shell, device: str, count: int) -> float:
    return count / shell.seconds(f"dd if={device} of=/dev/null iflag=direct bs=4k count={count}")


def received_a_second(shell: Shell, address: str, total: int) -> float:
    """Bytes that come to the guest. Hosts let no guest connect to them, so the host connects."""

    def send(peer: socket.socket) -> None:
        peer.sendall(bytes(total))
        peer.shutdown(socket.SHUT_WR)
        # The guest closes when it has read the last byte.
        assert peer.recv(1) == b""

    return total / _talk_s(shell, address, "nc -l -p 9000 >/dev/null", send)


def sent_a_second(shell: Shell, address: str, total: int) -> float:
    """Bytes that come from the guest."""

    def take(peer: socket.socket) -> None:
        taken = 0
        while data := peer.recv(1 << 20):
            taken += len(data)
        assert taken == total

    source = f"dd if=/dev/zero bs=12500 count={total // 12500} 2>/dev/null"
    return total / _talk_s(shell, address, f"{source} | nc -l -p 9000", take)


def _talk_s(
    shell: Shell, address: str, command: str, talk: Callable[[socket.socket], None]
) -> float:
    """How long a talk with a command in the guest takes, by the host's clock."""

    def connected() -> socket.socket | None:
        try:
            return socket.create_connection((address, 9000), timeout=60)
        except ConnectionRefusedError:
            return None

    end = shell.begin(command)
    with wait_for("the guest listens", connected) as peer:
        begun = time.monotonic()
        talk(peer)
        took_s = time.monotonic() - begun
    end()
    return took_s


def passed(tap: str) -> int:
    """Bytes that went through a TAP, both ways."""
    counters = interface_counters()[tap]
    return counters.rx_bytes + counters.tx_bytes


@pytest.fixture
def made(qemu_installation: Installation) -> Iterator[dict[str, Any]]:
    """A VM with a limit on everything."""
    before = machine_state(qemu_installation.data)
    arguments = ["--mem", "192", "--root-size", "160M", "--balloon", "0,stats=1"]
    arguments += ["--drive", "data,size=64M,bw=4", "--drive", "ops,size=64M,iops=60"]
    arguments += ["--nic", "rx=3,tx=1.5", "--nic", "nat"]
    said = qemu_installation.cli("run", "busybox", "--name", "felt", *arguments, "-o", "json")
    yield json.loads(said)["item"]
    qemu_installation.cli("rm", "-f", "felt")
    assert machine_state(qemu_installation.data) == before


def test_a_guest_feels_its_limits_at_creation_and_after_a_change(
    qemu_installation: Installation, made: dict[str, Any]
) -> None:
    cli = qemu_installation.cli
    address = made["nics"][0]["ip"].partition("/")[0]
    shell = Shell(qemu_installation.data / "fc" / "vms" / made["id"])
    wait_for("the guest", lambda: "nexus-guest ready" in cli("logs", "felt"), poll_s=0.5)
    assert re.search(r"eth1.*" + made["nics"][1]["ip"], shell.run("ip -o address"))
    second = made["nics"][1]["ip"].partition("/")[0]
    assert int(shell.run("df -k / | tail -1").split()[1]) > 140 << 10

    obeys(4 * MIB, lambda: bytes_a_second(shell, "/dev/vdb", 12 * MIB))
    obeys(60, lambda: operations_a_second(shell, "/dev/vdc", 180))
    obeys(3 * MBIT, lambda: received_a_second(shell, address, 18 * MBIT))
    obeys(1.5 * MBIT, lambda: sent_a_second(shell, address, 9 * MBIT))

    # What is for the other NIC's address goes through the other NIC.
    taps = [nic["tap"] for nic in made["nics"]]
    before = [passed(tap) for tap in taps]
    sent_a_second(shell, second, 9 * MBIT)
    assert passed(taps[0]) - before[0] < MBIT
    assert passed(taps[1]) - before[1] > 9 * MBIT

    # Once by each: the command line, the SDK, and REST.
    cli("drive", "limit", "felt", "data", "--bw", "8")
    client = Client(qemu_installation.ready["url"], _token(qemu_installation))
    with client, qemu_installation.http() as http:
        change = DriveChange(limits=DriveLimits(iops=120), size_mib=96)
        assert client.vms.change_drive("felt", "ops", change).state == "running"
        limits = {"limits": {"rx_mbit_s": 1.5, "tx_mbit_s": 3}}
        answer = http.patch("/v1/vms/felt/nics/eth0?wait=applied", json=limits)
        assert answer.status_code == 200, answer.text

    obeys(8 * MIB, lambda: bytes_a_second(shell, "/dev/vdb", 24 * MIB, write=True))
    obeys(120, lambda: operations_a_second(shell, "/dev/vdc", 360))
    obeys(1.5 * MBIT, lambda: received_a_second(shell, address, 9 * MBIT))
    obeys(3 * MBIT, lambda: sent_a_second(shell, address, 18 * MBIT))

    assert int(shell.run("cat /sys/block/vdc/size")) * 512 == 96 * MIB
    cli("drive", "grow", "felt", "data", "128M")
    assert int(shell.run("cat /sys/block/vdb/size")) * 512 == 128 * MIB
    cli("drive", "limit", "felt", "data", "--bw", "none")
    freed = (bytes_a_second(shell, "/dev/vdb", 64 * MIB) for _ in range(TRIES))
    assert any(rate > (1 + CLOSE) * 8 * MIB for rate in freed)


def test_a_balloon_takes_memory_and_gives_it_back(
    qemu_installation: Installation, made: dict[str, Any]
) -> None:
    cli = qemu_installation.cli
    shell = Shell(qemu_installation.data / "fc" / "vms" / made["id"])
    wait_for("the guest", lambda: "nexus-guest ready" in cli("logs", "felt"), poll_s=0.5)

    def free_mib() -> int:
        return int(shell.run("grep MemFree /proc/meminfo").split()[1]) >> 10

    before = free_mib()
    cli("balloon", "felt", "64M")
    wait_for("less memory", lambda: free_mib() < before - 56, poll_s=0.2)
    with qemu_installation.http() as http:
        stats = http.get("/v1/vms/felt/firecracker/balloon/statistics").json()
    assert (stats["target_mib"], stats["actual_mib"]) == (64, 64)
    cli("balloon", "felt", "0")
    wait_for("memory again", lambda: free_mib() > before - 8, poll_s=0.2)


def _token(installation: Installation) -> str:
    return Path(installation.ready["token_file"]).read_text().strip()


@pytest.mark.firecracker
def test_firecracker_is_told_at_creation_and_after_a_change(
    firecracker_installation: Installation,
) -> None:
    before = machine_state(firecracker_installation.data)
    cli = firecracker_installation.cli
    arguments = ["busybox", "--kernel", "tiny", "--mem", "48", "--name", "told"]
    arguments += ["--drive", "data,size=64M,bw=4", "--nic", "rx=8", "--balloon", "0"]
    made = json.loads(cli("run", *arguments, "-o", "json"))["item"]
    with firecracker_installation.http() as http:

        def config() -> dict[str, Any]:
            found: dict[str, Any] = http.get("/v1/vms/told/firecracker/vm/config").json()
            return found

        def bandwidth(limiter: dict[str, Any]) -> int:
            bucket = limiter["bandwidth"]
            return int(bucket["size"]) * 1000 // int(bucket["refill_time"])

        drive, nic = config()["drives"][1], config()["network-interfaces"][0]
        assert abs(bandwidth(drive["rate_limiter"]) / (4 * MIB) - 1) < 0.01
        assert bandwidth(nic["rx_rate_limiter"]) == 8 * MBIT
        cli("drive", "limit", "told", "data", "--bw", "20")
        cli("drive", "grow", "told", "data", "128M")
        cli("nic", "limit", "told", "eth0", "--rx", "none", "--tx", "40")
        drive, nic = config()["drives"][1], config()["network-interfaces"][0]
        assert bandwidth(drive["rate_limiter"]) == 20 * MIB
        assert bandwidth(nic["tx_rate_limiter"]) == 40 * MBIT
        # The tiny guest has no driver for a balloon; its VM goes on all the same.
        cli("balloon", "told", "16M", code=1)
        now = http.get("/v1/vms/told").json()["item"]
        assert (now["state"], now["pid"], now["error"]) == ("running", made["pid"], None)
        assert now["devices_error"]["fault_message"]
        assert "activated" in cli("show", "told")
        http.post("/v1/vms/told/stop?force=true&wait=stopped")
        http.post("/v1/vms/told/start?wait=running")
        assert config()["balloon"]["amount_mib"] == 16
        assert http.get("/v1/vms/told").json()["item"]["devices_error"] is None
    cli("rm", "-f", "told")
    assert machine_state(firecracker_installation.data) == before
