"""A host with a store of its own: a real manager, a real agent and Firecracker."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread

from nexus.images import sparse
from nexus.images.store import Store
from nexus.manager.app import create_app
from tests.agent.blobs import MIB, Gate, content, same
from tests.agent.harness import Agent
from tests.manager.core import Manager, served, settings_for, until

pytestmark = [pytest.mark.anyio, pytest.mark.firecracker, pytest.mark.root]


@pytest.fixture
def host(firecracker_binary: Path) -> Iterator[Agent]:
    agent = Agent(FC_BINARY=str(firecracker_binary))
    try:
        yield agent
    finally:
        agent.close()


async def register(manager: Manager, root: Path, kind: str, name: str, file: Path) -> str:
    sparse.clone_file(file, root / name)
    body = {"kind": kind, "name": name, "host_path": name}
    answer = await manager.http.post("/v1/images", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["item"]["sha256"])


async def test_a_host_fetches_what_its_vms_need(
    host: Agent, tmp_path: Path, tiny_kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    url = f"sqlite:///{tmp_path / 'nexus.db'}"
    settings = settings_for(tmp_path, url, f"unix:{host.socket}")
    root = settings.image_root
    root.mkdir()
    app = create_app(settings)
    async with served(app) as base:
        token = settings.admin_token_file.read_text().strip()
        bearer = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=base, headers=bearer, timeout=60) as http:
            manager = Manager(app.state.runtime, http, app, token)
            known = {"MANAGER_BASE": base, "NEXUS_HOST_TOKEN_FILE": str(settings.host_token_file)}
            host.environment |= known | {"NEXUS_STORE_LIMIT_MIB": "16"}
            await to_thread.run_sync(host.start)
            await until("the manager is ready", manager.is_ready)
            kernel = await register(manager, root, "kernel", "tiny", tiny_kernel)
            disk = await register(manager, root, "rootfs", "disk", content(tmp_path, "d"))

            # The agent dies in the middle of what three VMs wait for.
            gate.hold_after = 4 * MIB
            body = {"name": "vm", "count": 3, "mem_mib": 32, "kernel": "tiny", "rootfs": "disk"}
            assert (await http.post("/v1/vms", json=body)).status_code == 201

            async def progress() -> Any:
                vm = await manager.vm("vm-2")
                return vm["progress"] if (vm["progress"] or {}).get("fraction") else None

            far = await until("it is told how far the image is", progress)
            assert ("rootfs" in far["what"], 0 < far["fraction"] < 1) == (True, True)
            assert (await manager.vm("vm-2"))["state"] == "requested"
            await to_thread.run_sync(host.kill)
            gate.open()
            before = len(gate.reads)
            await to_thread.run_sync(host.start)
            async with anyio.create_task_group() as tasks:
                for number in (1, 2, 3):
                    tasks.start_soon(manager.becomes, f"vm-{number}", "running")
            assert (await manager.vm("vm-2"))["progress"] is None
            assert "fetching" in await manager.reasons("vm-2")
            again = [read for read in gate.reads[before:] if read[0] == disk]
            assert sum(end - start for _, start, end in again) <= 8 * MIB - 3 * MIB
            assert gate.maps.count(disk) == 2
            mine = Store(host.store)
            assert same(mine.path(disk), settings.store_dir / "sha256" / disk)
            assert mine.path(kernel).stat().st_nlink == 4

            # Room for another one is made by what no VM is made of any more.
            other = await register(manager, root, "rootfs", "other", content(tmp_path, "o", 10))
            refused = await http.post("/v1/vms?wait=running", json={**OTHER, "name": "early"})
            error = (await manager.vm("early"))["error"]
            assert refused.status_code == 201, refused.text
            assert (error["stage"], "no room" in error["message"]) == ("disk", True)
            for name in ("vm-1", "vm-2", "vm-3", "early"):
                assert (await http.delete(f"/v1/vms/{name}?wait=deleted")).status_code == 200
            await manager.create(name="late", **OTHER)
            assert [mine.has(sha256) for sha256 in (kernel, disk, other)] == [True, False, True]
            assert (await http.delete("/v1/vms/late?wait=deleted")).status_code == 200


OTHER = {"mem_mib": 32, "kernel": "tiny", "rootfs": "other"}
