"""Volumes on real Firecracker: one file that several machines have, one after the other."""

from pathlib import Path

import pytest

from nexus.api.machines import MachineDrive
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
