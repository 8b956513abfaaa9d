"""A life under the jailer: own uid, own root, same files."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.api.devices import DriveLimits
from nexus.api.machines import MachineDrive, MachineStatus
from nexus.ids import new_id
from tests.agent.harness import Agent, until
from tests.agent.snapshots import capture, clone, count, remove

pytestmark = [pytest.mark.firecracker, pytest.mark.root]


@pytest.fixture
def jailing(firecracker_binary: Path, jailer_binary: Path) -> Iterator[Agent]:
    agent = Agent(
        FC_BINARY=str(firecracker_binary), JAILER_BINARY=str(jailer_binary), NEXUS_JAILER="1"
    )
    try:
        yield agent.start()
    finally:
        agent.close()


def test_a_jailed_life(jailing: Agent, tiny_kernel: Path) -> None:
    image = jailing.dir / "root.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    rootfs = jailing.blob(image)
    before = jailing.traces()
    drives = [
        MachineDrive(name="data", size_mib=4, blob=None, read_only=False),
        MachineDrive(name="tools", size_mib=None, blob=rootfs, read_only=True),
        MachineDrive(name="kept", size_mib=4, blob=None, read_only=False, volume=new_id()),
    ]
    machine = jailing.machine(tiny_kernel, rootfs=rootfs, drives=drives)
    status = jailing.put(machine)
    assert (status.state, status.error) == ("running", None)
    uid = uid_of(status)
    assert uid >= 1_500_000_000
    until("the banner", lambda: "ready" in "".join(jailing.console(machine.id)))
    root = jailing.run_dir / "vms" / machine.id / "firecracker" / machine.id / "root"
    volume = jailing.run_dir / "volumes" / f"{drives[2].volume}.img"
    assert volume.samefile(root / "drive-kept.img")
    assert volume.stat().st_uid == uid
    assert (root / "v.sock").is_socket()
    assert (root / "v.sock").stat().st_uid == uid
    other = jailing.put(jailing.machine(tiny_kernel, rootfs=rootfs))
    assert uid_of(other) != uid
    jailing.delete(other.id)

    jailing.kill()
    jailing.start()
    found = until("it is found", lambda: jailing.get(machine.id))
    assert found.pid == status.pid

    larger = drives[0].model_copy(update={"size_mib": 8, "limits": DriveLimits(iops=100)})
    tuned = machine.model_copy(update={"generation": 2, "drives": [larger, *drives[1:]]})
    status = jailing.put(tuned)
    assert (status.pid, status.devices_applied) == (found.pid, True), status.devices_error
    assert (root / "drive-data.img").stat().st_size == 8 << 20

    snapshot = capture(jailing, tuned)
    own = drives[2].model_copy(update={"volume": new_id()})
    copy = clone(jailing, tiny_kernel, snapshot, drives=[larger, drives[1], own])
    loaded = jailing.put(copy)
    assert (loaded.state, loaded.error, loaded.devices_applied) == ("running", None, True)
    assert uid_of(loaded) not in (uid, 0)
    assert count(jailing, copy.id) >= 0
    memory = next((jailing.run_dir / "snapshots").glob("*/mem")).stat()
    assert (memory.st_uid, memory.st_mode & 0o777) == (0, 0o444)
    jailing.delete(copy.id)
    remove(jailing, snapshot)
    assert jailing.http.delete(f"/agent/v1/volumes/{own.volume}").status_code == 200

    second = machine.model_copy(update={"generation": 3, "boot": 2})
    again = jailing.put(second)
    assert (again.state, again.boot) == ("running", 2), again.error
    stopped = jailing.put(second.model_copy(update={"generation": 4, "power": "stopped"}))
    assert (stopped.state, stopped.exit_cause) == ("stopped", "stopped")
    jailing.delete(machine.id)
    assert jailing.http.delete(f"/agent/v1/volumes/{drives[2].volume}").status_code == 200
    assert jailing.traces() == before


def uid_of(status: MachineStatus) -> int:
    return int(Path(f"/proc/{status.pid}/status").read_text().split("Uid:")[1].split()[0])
