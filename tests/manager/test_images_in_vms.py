"""Images and the VMs made of them: names with tags, paths where they are allowed, races."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from nexus.manager.config import Settings
from tests.images import kernels
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, running, settings_for

pytestmark = pytest.mark.anyio


@pytest.fixture
def root(settings: Settings) -> Path:
    settings.image_root.mkdir(exist_ok=True)
    (settings.image_root / "vmlinux").write_bytes(kernels.elf())
    (settings.image_root / "disk").write_bytes(b"a disk")
    (settings.image_root / "out").symlink_to("/etc/passwd")
    return settings.image_root


@pytest.fixture
async def permissive(tmp_path: Path, sqlite_url: str, agent: AgentDouble) -> AsyncIterator[Manager]:
    """A manager that allows paths."""
    allowed = settings_for(tmp_path, sqlite_url, agent.url, MANAGER_ALLOW_IMAGE_PATHS="1")
    async with running(allowed) as made:
        await made.add_defaults()
        root = allowed.image_root
        root.mkdir()
        (root / "vmlinux").write_bytes(kernels.elf())
        (root / "disk").write_bytes(b"a disk")
        (root / "out").symlink_to("/etc/passwd")
        yield made


async def add(manager: Manager, kind: str, name: str, file: str) -> str:
    body = {"kind": kind, "name": name, "host_path": file}
    answer = await manager.http.post("/v1/images", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def images(manager: Manager, kind: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await manager.http.get(f"/v1/images?kind={kind}")).json()[
        "items"
    ]
    return items


async def test_tags_are_names(manager: Manager, root: Path) -> None:
    old = await add(manager, "rootfs", "debian:11", "disk")
    new = await add(manager, "rootfs", "debian:12", "disk")
    await add(manager, "kernel", "debian:12", "vmlinux")
    vm = await manager.create(name="web", rootfs="debian:12", kernel="debian:12")
    assert (vm["rootfs"]["id"], vm["rootfs"]["name"]) == (new, "debian:12")
    answer = await manager.http.get("/v1/images/debian:12")
    assert answer.status_code == 409, "two kinds have this name"
    assert (await manager.http.get("/v1/images/debian:11")).json()["item"]["id"] == old
    assert (await manager.http.delete(f"/v1/images/{new}")).json()["error"] == "in_use"
    assert (await manager.http.delete("/v1/images/debian:11")).status_code == 200
    body = {"kind": "rootfs", "name": "debian:12", "host_path": "disk"}
    assert (await manager.http.post("/v1/images", json=body)).json()["error"] == "name_taken"


async def test_the_content_of_a_drive_stays_as_long_as_its_vm(manager: Manager, root: Path) -> None:
    image = await add(manager, "rootfs", "data:1", "disk")
    sha256 = (await manager.http.get(f"/v1/images/{image}")).json()["item"]["sha256"]
    vm = await manager.create(name="web", drives=[{"name": "data", "image": "data:1"}])
    assert (await manager.http.delete(f"/v1/images/{image}")).json()["error"] == "in_use"
    assert await manager.runtime.images.sweep() == 0
    assert manager.runtime.images.store.has(sha256)
    await manager.http.delete(f"/v1/vms/{vm['id']}?wait=deleted")
    assert (await manager.http.delete(f"/v1/images/{image}")).status_code == 200
    assert not manager.runtime.images.store.has(sha256)


async def test_no_vm_is_made_of_an_image_that_goes(manager: Manager, root: Path) -> None:
    """Deleting an image and making a VM of it at once: one of the two is refused."""
    for number in range(8):
        (root / "disk").write_bytes(f"disk {number}".encode())
        image = await add(manager, "rootfs", f"race:{number}", "disk")
        made: list[int] = []
        gone: list[int] = []

        async def make(ref: str = image, into: list[int] = made) -> None:
            answer = await manager.http.post("/v1/vms", json={"rootfs": ref})
            into.append(answer.status_code)

        async def remove(ref: str = image, into: list[int] = gone) -> None:
            into.append((await manager.http.delete(f"/v1/images/{ref}")).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(make if number % 2 else remove)
            tasks.start_soon(remove if number % 2 else make)
        assert (made, gone) in (([201], [409]), ([409], [200]))


async def test_paths_are_refused_unless_they_are_allowed(manager: Manager, root: Path) -> None:
    for field in ("kernel", "initrd", "rootfs"):
        answer = await manager.http.post("/v1/vms", json={field: str(root / "disk")})
        assert (answer.status_code, answer.json()["error"]) == (403, "path_refused")
        assert "nexus image add" in answer.json()["suggestion"]


async def test_a_path_becomes_an_image_once(permissive: Manager) -> None:
    root = permissive.runtime.settings.image_root
    paths = {"kernel": str(root / "vmlinux"), "rootfs": str(root / "disk")}
    first = await permissive.create(name="one", **paths)
    second = await permissive.create(name="two", **paths)
    assert first["rootfs"] == second["rootfs"]
    assert first["kernel"] == second["kernel"]
    named = [image for image in await images(permissive, "rootfs") if image["name"] != "busybox"]
    assert [image["source"] for image in named] == [str(root / "disk")]
    (root / "disk").write_bytes(b"another disk")
    third = await permissive.create(name="three", **paths)
    assert third["rootfs"]["sha256"] != first["rootfs"]["sha256"]
    await add(permissive, "rootfs", "mine", "disk")
    fourth = await permissive.create(name="four", rootfs=str(root / "disk"))
    assert fourth["rootfs"]["id"] == third["rootfs"]["id"]
    answer = await permissive.http.delete(f"/v1/images/{first['rootfs']['id']}")
    assert answer.json()["error"] == "in_use"


async def test_many_requests_for_one_path_make_one_image(permissive: Manager) -> None:
    path = str(permissive.runtime.settings.image_root / "disk")
    seen: set[str] = set()

    async def make(number: int) -> None:
        vm = await permissive.create("", name=f"vm-{number}", rootfs=path)
        seen.add(vm["rootfs"]["id"])

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(make, number)
    assert len(seen) == 1


async def test_a_request_that_is_sent_again_makes_one_vm_of_its_path(permissive: Manager) -> None:
    body = {"name": "one", "rootfs": str(permissive.runtime.settings.image_root / "disk")}
    headers = {"idempotency-key": "the-same"}
    answers = [await permissive.http.post("/v1/vms", json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"]


async def test_allowed_paths_still_lie_under_the_root(permissive: Manager) -> None:
    root = permissive.runtime.settings.image_root
    (root / "empty").touch()
    for path, status in (
        ("/etc/passwd", 403),
        (str(root / "out"), 403),
        (f"{root}/../nexus.db", 403),
        ("/proc/self/root/etc/passwd", 403),
        ("/dev/zero", 403),
        (str(root), 403),
        (str(root / "none"), 404),
        (str(root / "empty"), 422),
        (str(root / "disk"), 422),  # no kernel
        ("/" + "x" * 5000, 422),
        ("/\n", 422),
        ("/", 422),
    ):
        answer = await permissive.http.post("/v1/vms", json={"kernel": path})
        assert answer.status_code == status, (path, answer.text)
    assert (await permissive.http.get("/v1/vms")).json()["items"] == []
