"""Linux under ``nexus-qemu``: boot, network, console, snapshots, power, and no process left."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nexus.agent.ending import how_it_ended
from nexus.api.endings import ExitCause
from tests.parts import LinuxImages
from tests.qemu.vmm import READY, Vmm, ended, fetch, ip, write_config

pytestmark = [pytest.mark.qemu, pytest.mark.root]

HOST, GUEST = "172.31.7.1", "172.31.7.2"
Start = Callable[..., Vmm]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[Vmm] = []

    def begin(folder: Path, *arguments: str) -> Vmm:
        made.append(Vmm(folder, *arguments))
        return made[-1]

    yield begin
    for vmm in made:
        vmm.end()


@pytest.fixture
def taps() -> Iterator[tuple[str, str]]:
    names = (f"qa{os.getpid()}", f"qb{os.getpid()}")
    for name in names:
        ip("tuntap", "add", name, "mode", "tap")
    ip("addr", "add", f"{HOST}/24", "dev", names[0])
    ip("link", "set", names[0], "up")
    yield names
    for name in names:
        ip("link", "del", name)


def test_a_life_with_network_console_and_power_button(
    start: Start, taps: tuple[str, str], linux_images: LinuxImages, tmp_path: Path
) -> None:
    write_config(tmp_path, linux_images, tap=taps[0], address=GUEST)
    vmm = start(tmp_path, "--api-sock", "api.sock", "--config-file", "vmm.json")
    vmm.wait_console(READY)
    assert fetch(GUEST) == "guest\n"
    vmm.type("echo an''swer")
    vmm.wait_console(b"\nanswer")
    vmm.must("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    assert vmm.process.wait(60) == 0
    assert "exiting successfully. exit_code=0" in vmm.log()
    assert cause_of_end(vmm) == "guest_poweroff"


def cause_of_end(vmm: Vmm) -> ExitCause:
    """What the agent makes of a VMM that ended although nobody asked for it."""
    return how_it_ended(
        started=True,
        stop_asked=False,
        killed=False,
        exit_code=vmm.process.returncode,
        vmm_log=vmm.log().splitlines(),
        console=vmm.console.decode().splitlines(),
    ).cause


def test_twenty_boots_of_twenty(start: Start, linux_images: LinuxImages, tmp_path: Path) -> None:
    def boot(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        write_config(folder, linux_images)
        vmm = start(folder, "--no-api", "--config-file", "vmm.json")
        vmm.wait_console(READY)
        vmm.end()

    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(boot, range(20)))) == 20


def test_limits_and_balloon_while_it_runs(
    start: Start, taps: tuple[str, str], linux_images: LinuxImages, tmp_path: Path
) -> None:
    balloon = {"amount_mib": 0, "deflate_on_oom": True, "stats_polling_interval_s": 1}
    write_config(tmp_path, linux_images, tap=taps[0], address=GUEST, balloon=balloon)
    (tmp_path / "metrics").touch()
    arguments = ("--config-file", "vmm.json", "--metrics-path", "metrics")
    vmm = start(tmp_path, "--api-sock", "api.sock", *arguments)
    vmm.wait_console(READY)
    bucket = {"bandwidth": {"size": 1_000_000, "refill_time": 100}}
    vmm.must("PATCH", "/drives/rootfs", {"drive_id": "rootfs", "rate_limiter": bucket})
    limits = {"iface_id": "eth0", "rx_rate_limiter": bucket, "tx_rate_limiter": bucket}
    vmm.must("PATCH", "/network-interfaces/eth0", limits)
    assert "guest" in fetch(GUEST)
    vmm.must("PATCH", "/balloon", {"amount_mib": 16})
    while vmm.must("GET", "/balloon/statistics")["actual_mib"] != 16:
        pass
    vmm.must("PUT", "/actions", {"action_type": "FlushMetrics"})
    metrics = (tmp_path / "metrics").read_text()
    assert '"net_eth0"' in metrics
    assert '"block_rootfs"' in metrics

    # A clone's balloon takes memory from the clone, and nothing out of the snapshot.
    vmm.must("PATCH", "/vm", {"state": "Paused"})
    files = {"snapshot_path": "snap", "mem_file_path": "mem"}
    vmm.must("PUT", "/snapshot/create", files)
    vmm.end()
    before = hashlib.sha256((tmp_path / "mem").read_bytes()).hexdigest()
    (tmp_path / "api.sock").unlink()
    clone = start(tmp_path, "--api-sock", "api.sock")
    memory = {"backend_type": "File", "backend_path": "mem"}
    load = {"snapshot_path": "snap", "mem_backend": memory, "resume_vm": True}
    clone.must("PUT", "/snapshot/load", load)
    clone.must("PATCH", "/balloon", {"amount_mib": 48})
    while clone.must("GET", "/balloon/statistics")["actual_mib"] != 48:
        pass
    assert hashlib.sha256((tmp_path / "mem").read_bytes()).hexdigest() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_qemu_never_outlives_its_vmm(
    start: Start, linux_images: LinuxImages, tmp_path: Path, number: signal.Signals
) -> None:
    write_config(tmp_path, linux_images)
    vmm = start(tmp_path, "--api-sock", "api.sock", "--config-file", "vmm.json")
    while vmm.must("GET", "/")["state"] != "Running":
        pass
    qemu = vmm.qemu_pid()
    vmm.process.send_signal(number)
    assert vmm.process.wait(20) == -number
    assert ended(qemu)


def test_a_qemu_that_dies_ends_the_vmm_with_an_error(
    start: Start, linux_images: LinuxImages, tmp_path: Path
) -> None:
    write_config(tmp_path, linux_images)
    vmm = start(tmp_path, "--api-sock", "api.sock", "--config-file", "vmm.json")
    while vmm.must("GET", "/")["state"] != "Running":
        pass
    os.kill(vmm.qemu_pid(), signal.SIGKILL)
    assert vmm.process.wait(20) == 1
    assert "exiting with error. exit_code=1" in vmm.log()


def test_a_reboot_of_the_guest_ends_the_vmm_cleanly(
    start: Start, linux_images: LinuxImages, tmp_path: Path
) -> None:
    write_config(tmp_path, linux_images)
    vmm = start(tmp_path, "--no-api", "--config-file", "vmm.json")
    vmm.wait_console(READY)
    vmm.type("reboot")
    assert vmm.process.wait(60) == 0
    assert cause_of_end(vmm) == "guest_reboot"
