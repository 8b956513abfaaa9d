"""The registry: names for content, and content that goes when nothing needs it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from sqlalchemy import func, select

from nexus.api.errors import Conflict, InUse, NameTaken, NotFound, PathRefused, ValidationFailed
from nexus.api.hosts import Capacity, HostNetwork
from nexus.api.images import Image, ImageCreate, ImageKind
from nexus.ids import new_id
from nexus.images.store import Fill
from nexus.manager.config import Settings
from nexus.manager.db.columns import StoredImage
from nexus.manager.db.session import Database
from nexus.manager.db.tables import HostRow, ImageRow, VmRow
from nexus.manager.pipelines.contents import sweep_contents
from nexus.manager.services.images import Images
from nexus.manager.uow import Caller
from tests.images import kernels

pytestmark = pytest.mark.anyio

CALLER = Caller(actor="admin", project="default", request_id="r", permission="images:write")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    root = tmp_path / "images"
    root.mkdir()
    return Settings.from_env({"NEXUS_DATA_DIR": str(tmp_path), "MANAGER_IMAGE_ROOT": str(root)})


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings.database_url)
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def images(db: Database, settings: Settings) -> Images:
    return Images.of(db, settings)


async def add(
    images: Images, name: str, content: bytes = b"disk", kind: ImageKind = "rootfs"
) -> Image:
    (images.settings.image_root / "file").write_bytes(content)
    return await images.register(CALLER, ImageCreate(kind=kind, name=name, host_path="file"))


def kept(images: Images) -> set[str]:
    folder = images.settings.store_dir / "sha256"
    return {file.name for file in folder.iterdir()} if folder.exists() else set()


async def make_vm(db: Database, image: Image) -> str:
    """A VM's row that uses ``image`` as its kernel."""
    now = datetime.now(UTC)
    network = HostNetwork(bridge="b", cidr="10.0.0.0/24", gateway="10.0.0.1", dns=[])
    room = Capacity(
        vcpus=1, mem_mib=1, mem_available_mib=1, disk_mib=1, disk_available_mib=1, vms=0
    )
    host = HostRow(
        id=new_id(), name="h", agent_url="unix:/x", state="healthy", engine="qemu",
        engine_reason="", engine_version="", network=network, capacity=room, run_dir="/x",
        agent_version="", last_seen_at=now, created_at=now,
    )  # fmt: skip
    stored = StoredImage(
        id=image.id, kind=image.kind, name=image.name, sha256=image.sha256,
        size_bytes=image.size_bytes,
    )  # fmt: skip
    vm = VmRow(
        id=new_id(), project="default", name="user", host_id=host.id, engine="qemu",
        created_at=now, updated_at=now, vcpu=1, mem_mib=16, kernel=stored, nics=[], tags={},
        ssh_keys=[], power="running", boot=1, generation=1, wanted_by="admin", state="running",
        next_attempt_at=now,
    )  # fmt: skip
    async with db.write() as session:
        session.add(host)
        await session.flush()
        session.add(vm)
    return vm.id


async def test_an_image_is_copied_hashed_and_named(images: Images) -> None:
    made = await add(images, "debian", b"content")
    assert made.sha256 == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert (made.size_bytes, made.source, made.project) == (7, "file", "default")
    assert images.store.path(made.sha256).read_bytes() == b"content"
    (images.settings.image_root / "file").write_bytes(b"changed")
    assert images.store.path(made.sha256).read_bytes() == b"content"
    assert await images.get("default", made.id) == made
    assert await images.get("default", "debian") == made


async def test_a_taken_name_is_refused_whatever_the_content(images: Images) -> None:
    made = await add(images, "debian")
    for content in (b"disk", b"other"):
        with pytest.raises(NameTaken, match=made.id):
            await add(images, "debian", content)
    assert kept(images) == {made.sha256}


async def test_the_same_name_may_serve_several_kinds(images: Images) -> None:
    root = await add(images, "debian")
    initrd = await add(images, "debian", b"initrd", "initrd")
    with pytest.raises(Conflict) as caught:
        await images.get("default", "debian")
    assert caught.value.suggestion is not None
    assert root.id in caught.value.suggestion
    assert await images.get("default", initrd.id) == initrd


async def test_a_race_for_one_name_has_one_winner(images: Images) -> None:
    outcomes: list[str] = []

    async def attempt(number: int) -> None:
        file = images.settings.image_root / f"file{number}"
        file.write_bytes(f"content {number}".encode())
        try:
            await images.register(
                CALLER, ImageCreate(kind="rootfs", name="one", host_path=file.name)
            )
            outcomes.append("made")
        except NameTaken:
            outcomes.append("taken")

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(attempt, number)
    assert sorted(outcomes) == ["made"] + ["taken"] * 7


async def test_lists_go_page_by_page(images: Images) -> None:
    made = [await add(images, f"image-{number}") for number in range(5)]
    await add(images, "image-0", b"initrd", "initrd")
    seen: list[Image] = []
    cursor = None
    while True:
        page = await images.find("default", kind="rootfs", name=None, cursor=cursor, limit=2)
        seen += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == made
    both = await images.find("default", kind=None, name="image-0", cursor=None, limit=10)
    assert [image.kind for image in both.items] == ["rootfs", "initrd"]
    other = await images.find("other", kind=None, name=None, cursor=None, limit=10)
    assert other.items == []


async def test_content_goes_with_its_last_name(images: Images) -> None:
    first = await add(images, "first")
    second = await add(images, "second")
    assert first.sha256 == second.sha256
    await images.delete(CALLER, first.id)
    assert kept(images) == {second.sha256}
    await images.delete(CALLER, "second")
    assert kept(images) == set()
    with pytest.raises(NotFound):
        await images.delete(CALLER, second.id)


async def test_an_image_in_use_stays(images: Images, db: Database) -> None:
    made = await add(images, "kernel", kernels.bzimage(), "kernel")
    vm_id = await make_vm(db, made)
    with pytest.raises(InUse, match="VM user"):
        await images.delete(CALLER, made.id)
    async with db.write() as session:
        await session.delete(await session.get(VmRow, vm_id))
    await images.delete(CALLER, made.id)
    assert kept(images) == set()


async def test_content_without_a_name_is_swept_but_not_what_vms_use(
    images: Images, db: Database
) -> None:
    used = await add(images, "used")
    await make_vm(db, used)
    async with db.write() as session:
        await session.delete(await session.get(ImageRow, used.id))
    orphan = images.settings.image_root / "orphan"
    orphan.write_bytes(b"left by a crash between the copy and the row")
    images.store.import_file(orphan)
    assert await images.sweep() == 1
    assert kept(images) == {used.sha256}


async def test_content_that_only_a_vm_needed_goes_after_it(images: Images, db: Database) -> None:
    old = await add(images, "kernel", kernels.bzimage(), "kernel")
    vm_id = await make_vm(db, old)
    new = await add(images, "new", kernels.elf(), "kernel")
    async with db.write() as session:
        (await session.get_one(ImageRow, old.id)).sha256 = new.sha256
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sweep_contents, images, 0.01)
        assert await images.sweep() == 0
        async with db.write() as session:
            await session.delete(await session.get(VmRow, vm_id))
        with anyio.fail_after(30):
            while old.sha256 in kept(images):
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert kept(images) == {new.sha256}


async def test_content_swept_during_a_registration_is_stored_again(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = images.store.receive
    swept = []

    def swept_once(fill: Fill) -> object:
        blob = real(fill)
        if not swept:
            swept.append(blob.sha256)
            images.store.remove(blob.sha256)
        return blob

    monkeypatch.setattr(images.store, "receive", swept_once)
    made = await add(images, "image")
    assert swept == [made.sha256]
    assert kept(images) == {made.sha256}


@pytest.mark.parametrize("name", ["builds", "0193c5e4-0000-7000-8000-000000000000"])
async def test_names_that_mean_something_else_are_refused(images: Images, name: str) -> None:
    with pytest.raises(ValidationFailed):
        await add(images, name)


async def test_nothing_is_kept_of_a_refused_file(images: Images, db: Database) -> None:
    root = images.settings.image_root
    (root / "empty").touch()
    (root / "raw").write_bytes(b"no kernel")
    for path, error in (
        ("/etc/passwd", PathRefused),
        ("none", NotFound),
        ("empty", ValidationFailed),
        ("raw", ValidationFailed),
    ):
        with pytest.raises(error):
            await images.register(CALLER, ImageCreate(kind="kernel", name="k", host_path=path))
    async with db.read() as session:
        assert await session.scalar(select(func.count()).select_from(ImageRow)) == 0
    assert kept(images) == set()
