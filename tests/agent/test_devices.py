"""Drives, NICs, limits and the balloon on real Firecracker, seen through its own API."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from nexus.api.devices import Balloon, DriveLimits, NicLimits
from nexus.api.machines import Machine, MachineDrive
from tests.agent.harness import Agent, links, until
from tests.agent.test_life import changed, disk

pytestmark = [pytest.mark.firecracker, pytest.mark.root]

MIB = 1 << 20


def config(agent: Agent, vm_id: str) -> dict[str, Any]:
    """What Firecracker says it has."""
    answer = agent.http.get(f"/agent/v1/vms/{vm_id}/proxy/vm/config")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def limiter(agent: Agent, vm_id: str, drive: str) -> dict[str, Any] | None:
    drives = {each["drive_id"]: each for each in config(agent, vm_id)["drives"]}
    found: dict[str, Any] | None = drives[drive]["rate_limiter"]
    return found


def furnished(agent: Agent, kernel: Path) -> Machine:
    """A machine with two drives, two NICs and a balloon."""
    machine = agent.machine(kernel, rootfs=disk(agent), mem_mib=64)
    second = machine.nics[0].model_copy(
        update={"iface": "eth1", "mac": "06:00:0a:40:00:ff", "limits": NicLimits(rx_mbit_s=10)}
    )
    return machine.model_copy(
        update={
            "rootfs_limits": DriveLimits(iops=500),
            "nics": [*machine.nics, second],
            "drives": [
                MachineDrive(name="data", size_mib=32, blob=None, read_only=False),
                MachineDrive(
                    name="tools",
                    size_mib=None,
                    blob=disk(agent),
                    read_only=True,
                    limits=DriveLimits(bandwidth_mib_s=10),
                ),
            ],
            "balloon": Balloon(target_mib=16, deflate_on_oom=False, stats_interval_s=0),
        }
    )


def test_devices_at_creation(agent: Agent, tiny_kernel: Path) -> None:
    machine = furnished(agent, tiny_kernel)
    status = agent.put(machine)
    assert (status.state, status.devices_applied) == ("running", True)
    assert [nic.iface for nic in status.nics] == ["eth0", "eth1"]
    found = config(agent, machine.id)
    assert [(d["drive_id"], d["is_read_only"]) for d in found["drives"]] == [
        ("rootfs", False),
        ("data", False),
        ("tools", True),
    ]
    rx = found["network-interfaces"][1]["rx_rate_limiter"]
    assert (rx["bandwidth"]["size"], rx["bandwidth"]["refill_time"]) == (250_000, 200)
    assert found["network-interfaces"][0]["rx_rate_limiter"] is None
    ops = limiter(agent, machine.id, "rootfs")
    assert ops is not None
    assert (ops["ops"]["size"], ops["ops"]["refill_time"]) == (100, 200)
    assert found["balloon"]["amount_mib"] == 16
    root = agent.run_dir / "vms" / machine.id / "root"
    assert (root / "drive-data.img").stat().st_size == 32 * MIB
    assert (root / "drive-data.img").stat().st_blocks == 0
    until("the banner", lambda: "devices=7" in "".join(agent.console(machine.id)))


def test_devices_change_while_it_runs(agent: Agent, tiny_kernel: Path) -> None:
    machine = furnished(agent, tiny_kernel).model_copy(update={"balloon": None})
    pid = agent.put(machine).pid
    data, tools = machine.drives
    changes: dict[str, Any] = {
        "drives": [
            data.model_copy(update={"size_mib": 64, "limits": DriveLimits(bandwidth_mib_s=20)}),
            tools.model_copy(update={"limits": None}),
        ],
        "rootfs_size_mib": 12,
        "nics": [nic.model_copy(update={"limits": NicLimits(tx_mbit_s=5)}) for nic in machine.nics],
    }
    machine = changed(machine, **changes)
    status = agent.put(machine)
    assert (status.state, status.pid, status.devices_error) == ("running", pid, None)
    found = limiter(agent, machine.id, "data")
    assert found is not None
    assert found["bandwidth"]["size"] == 4 * MIB
    # Firecracker shows a limit that was taken away as a bucket of nothing, or not at all.
    freed = (limiter(agent, machine.id, "tools") or {}).get("bandwidth")
    assert freed is None or freed["size"] == 0
    for nic in config(agent, machine.id)["network-interfaces"]:
        assert nic["tx_rate_limiter"]["bandwidth"]["size"] == 143_687
    root = agent.run_dir / "vms" / machine.id / "root"
    assert (root / "drive-data.img").stat().st_size == 64 * MIB
    assert (root / "rootfs.ext4").stat().st_size == 12 * MIB

    # What was changed past us stays, also over a restart of the agent and a repeated wish.
    url = f"/agent/v1/vms/{machine.id}/proxy/drives/data"
    limits = {"bandwidth": {"size": 1000, "refill_time": 100}}
    body = {"drive_id": "data", "rate_limiter": limits}
    assert agent.http.patch(url, json=body).status_code == 204
    agent.kill()
    agent.start()
    assert agent.put(machine).pid == pid
    found = limiter(agent, machine.id, "data")
    assert found is not None
    assert found["bandwidth"]["size"] == 1000

    # And the next boot has everything in its configuration.
    machine = changed(machine, boot=2)
    assert agent.put(machine).boot == 2
    found = limiter(agent, machine.id, "data")
    assert found is not None
    assert found["bandwidth"]["size"] == 4 * MIB


def test_a_change_that_was_cut_off_is_made_again(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel, rootfs=disk(agent))
    pid = agent.put(machine).pid
    agent.kill()
    agent.start(NEXUS_FAULT="after_tune")
    machine = changed(machine, rootfs_limits=DriveLimits(iops=50))
    with pytest.raises(Exception, match=r"disconnected|reset|closed"):
        agent.put(machine)
    assert agent.process is not None
    agent.process.wait(timeout=20)
    agent.start()
    status = agent.put(machine)
    assert (status.pid, status.devices_applied) == (pid, True)
    found = limiter(agent, machine.id, "rootfs")
    assert found is not None
    assert found["ops"]["size"] == 10


def test_what_the_vmm_refuses_is_told_in_its_words(agent: Agent, tiny_kernel: Path) -> None:
    machine = furnished(agent, tiny_kernel)
    agent.put(machine)
    # The tiny guest has no driver for a balloon.
    wish = Balloon(target_mib=32, deflate_on_oom=False, stats_interval_s=0)
    refused = changed(machine, balloon=wish, rootfs_limits=None)
    status = agent.put(refused)
    assert (status.state, status.error, status.devices_applied) == ("running", None, False)
    assert status.devices_error is not None
    assert status.devices_error.fault_message
    assert "32 MiB" in status.devices_error.message
    # The rest of the wish was carried out, and a wish that fits clears the error.
    freed = (limiter(agent, machine.id, "rootfs") or {}).get("ops")
    assert freed is None or freed["size"] == 0
    status = agent.put(changed(refused, balloon=machine.balloon))
    assert (status.devices_applied, status.devices_error) == (True, None)


def test_drives_are_kept_and_never_shrink(agent: Agent, tiny_kernel: Path) -> None:
    machine = furnished(agent, tiny_kernel)
    agent.put(machine)
    root = agent.run_dir / "vms" / machine.id / "root"
    with (root / "drive-data.img").open("r+b") as file:
        file.write(b"mine")
    data, tools = machine.drives
    smaller = data.model_copy(update={"size_mib": 1})
    agent.put(changed(machine, power="stopped"))
    agent.put(changed(machine, boot=2, generation=3, drives=[smaller, tools]))
    assert (root / "drive-data.img").read_bytes()[:4] == b"mine"
    assert (root / "drive-data.img").stat().st_size == 32 * MIB
    agent.delete(machine.id)
    assert not root.exists()


def test_what_shapes_a_nic_goes_with_its_tap(agent: Agent, tiny_kernel: Path) -> None:
    """A ``nexus-qemu`` that is killed leaves its ``ifb`` device; whoever ends the VM removes it."""
    shapers = []
    for _ in range(2):
        machine = agent.machine(tiny_kernel)
        shapers.append(f"i{agent.put(machine).nics[0].tap}")
        subprocess.run(["ip", "link", "add", shapers[-1], "type", "ifb"], check=True)
    agent.delete(machine.id)
    assert shapers[0] in links()
    assert shapers[1] not in links()
    agent.teardown()
    assert shapers[0] not in links()
