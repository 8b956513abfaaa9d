"""Volumes on real Firecracker: one file that several machines have, one after the other."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from nexus.api.machines import Machine, MachineDrive
from nexus.ids import new_id
from tests.agent.harness import Agent
from tests.agent.test_life import disk

pytestmark = [pytest.mark.firecracker, pytest.mark.root]

MIB = 1 << 20


def test_a_volume_outlives_its_machines(agent: Agent, tiny_kernel: Path) -> None:
    volume_id = new_id()
    url = f"/agent/v1/volumes/{volume_id}"
    file = agent.run_dir / "volumes" / f"{volume_id}.img"
    drive = MachineDrive(name="db", size_mib=32, blob=None, read_only=False, volume=volume_id)

    def link(vm_id: str) -> Path:
        return agent.run_dir / "vms" / vm_id / "root" / "drive-db.img"

    assert agent.http.delete(url).status_code == 200  # there is none yet
    first = agent.machine(tiny_kernel, rootfs=disk(agent)).model_copy(update={"drives": [drive]})
    assert agent.put(first).state == "running"
    assert (file.stat().st_size, file.stat().st_blocks) == (32 * MIB, 0)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert link(first.id).samefile(file)
    with file.open("r+b") as opened:
        opened.write(b"kept")

    use = agent.http.get("/agent/v1/usage").json()
    assert use["volumes"] == {volume_id: file.stat().st_blocks * 512}
    root = agent.run_dir / "vms" / first.id / "root" / "rootfs.ext4"
    assert 0 < root.stat().st_blocks * 512 <= use["vms"][first.id] < root.stat().st_size + MIB
    assert 0 < use["images_bytes"] <= use["images_size_bytes"] + MIB

    refused = agent.http.delete(url)
    assert (refused.status_code, refused.json()["error"]) == (409, "in_use")
    assert agent.http.delete(f"/agent/v1/vms/{first.id}").status_code == 200
    assert not link(first.id).exists()

    second = agent.machine(tiny_kernel, rootfs=disk(agent)).model_copy(update={"drives": [drive]})
    assert agent.put(second).state == "running"
    assert link(second.id).samefile(file)
    assert link(second.id).read_bytes()[:4] == b"kept"
    assert file.stat().st_nlink == 2
    assert agent.http.delete(f"/agent/v1/vms/{second.id}").status_code == 200
    assert file.stat().st_nlink == 1
    assert agent.http.delete(url).status_code == 200
    assert list(file.parent.iterdir()) == []
    assert agent.http.delete("/agent/v1/volumes/..%2f..%2fx").status_code in (404, 422)


def volume_drive(volume_id: str, **change: Any) -> MachineDrive:
    drive = MachineDrive(name="db", size_mib=8, blob=None, read_only=False, volume=volume_id)
    return drive.model_copy(update=change)


def stopped(machine: Machine, **change: Any) -> Machine:
    change = {"power": "stopped", "stop_timeout_s": 0.0, **change}
    return machine.model_copy(update={**change, "generation": machine.generation + 1})


def again(machine: Machine, **change: Any) -> Machine:
    numbers = {"generation": machine.generation + 1, "boot": machine.boot + 1}
    return machine.model_copy(update={"power": "running", **numbers, **change})


def test_a_volume_has_one_vmm_and_is_let_go_of(agent: Agent, tiny_kernel: Path) -> None:
    volume_id, copy_id, unused_id = new_id(), new_id(), new_id()
    file = agent.run_dir / "volumes" / f"{volume_id}.img"
    copied = agent.run_dir / "volumes" / f"{copy_id}.img"
    drives = [volume_drive(volume_id)]

    def copy(source: str = volume_id) -> httpx.Response:
        return agent.http.put(f"/agent/v1/volumes/{copy_id}", json={"source": source})

    assert copy(unused_id).status_code == 200  # no VM has had it: there is nothing to copy
    assert list(file.parent.iterdir()) == []
    first = agent.machine(tiny_kernel, drives=drives)
    assert agent.put(first).state == "running"
    file.write_bytes(b"kept" + bytes(4 << 20))
    second = agent.machine(tiny_kernel, name="two", drives=drives)

    def assert_it_is_taken() -> None:
        status = agent.put(second)
        assert status.error is not None
        assert (status.state, status.error.stage) == ("error", "disk")
        assert "'one' runs with the volume" in status.error.message
        assert (copy().status_code, copy().json()["error"]) == (409, "in_use")

    assert_it_is_taken()
    agent.kill()
    agent.start()
    assert_it_is_taken()

    # The same wish without the volume lets go of its file, and the other one gets it.
    first = stopped(first)
    assert agent.put(first).state == "stopped"
    assert file.stat().st_nlink == 2
    assert copy().status_code == 200
    assert (copied.read_bytes(), copied.stat().st_mode & 0o777) == (file.read_bytes(), 0o600)
    copied.write_bytes(b"its own")
    assert copy().status_code == 200  # twice is once
    assert copied.read_bytes() == b"its own"
    first = stopped(first, drives=[])
    agent.stop()
    agent.start(NEXUS_FAULT="after_shed")
    with pytest.raises(httpx.TransportError):
        agent.put(first)
    agent.kill()
    agent.start()
    assert agent.put(first).state == "stopped"
    assert not (agent.run_dir / "vms" / first.id / "root" / "drive-db.img").exists()
    assert agent.put(second).state == "running"
    assert file.stat().st_nlink == 2
    assert agent.http.delete(f"/agent/v1/volumes/{volume_id}").status_code == 409
    read_only = volume_drive(copy_id, name="rw", read_only=True)
    first = again(first, drives=[read_only])
    assert agent.put(first).state == "running"
    assert agent.http.delete(f"/agent/v1/volumes/{copy_id}").status_code == 409
    # A reboot without it lets go of it as well.
    assert agent.put(again(first, drives=[], stop_timeout_s=0.0)).state == "running"
    third = agent.http.put(f"/agent/v1/volumes/{new_id()}", json={"source": copy_id})
    assert third.status_code == 200
    assert copied.read_bytes()[:7] == b"its own"
    for machine in (first, second):
        agent.delete(machine.id)
    assert {file, copied} < set(file.parent.iterdir())


def test_killed_in_a_copy(agent: Agent) -> None:
    source_id, copy_id = new_id(), new_id()
    folder = agent.run_dir / "volumes"
    source, copied = folder / f"{source_id}.img", folder / f"{copy_id}.img"
    source.write_bytes(b"whole")
    (folder / f".{copy_id}.img.new").write_bytes(b"half")
    agent.stop()
    agent.start(NEXUS_FAULT="after_copy")
    order = {"source": source_id}
    with pytest.raises(httpx.TransportError):
        agent.http.put(f"/agent/v1/volumes/{copy_id}", json=order)
    agent.kill()
    assert sorted(folder.iterdir()) == sorted([source, copied])
    agent.start()
    assert agent.http.put(f"/agent/v1/volumes/{copy_id}", json=order).status_code == 200
    assert copied.read_bytes() == b"whole"
