"""Machines loaded from one snapshot of Linux: they go on, as others, on memory that they share."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.speaking import ask, connect, identify, put, run
from tests.parts import LinuxImages
from tests.qemu.vmm import READY, Vmm, fetch, ip, write_config

pytestmark = [pytest.mark.qemu, pytest.mark.root]

VSOCK = {"guest_cid": 3, "uds_path": "v.sock"}
HOST, GUEST = "172.31.8.1", "172.31.8.2"
MAC = "06:00:00:00:00:01"


def mac(number: int) -> str:
    return f"06:00:00:00:01:{number:02x}"


def address(number: int) -> str:
    return f"172.31.8.{10 + number}"


def digest(path: Path) -> str:
    return digest_of(path.read_bytes())


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Origin:
    """A snapshot, with the disk of that moment, in ``folder``."""

    folder: Path
    counted: int
    memory: str
    """The digest of its memory file, which nobody ever changes."""


@pytest.fixture(scope="module")
def bridge() -> Iterator[str]:
    name = f"qc{os.getpid()}"
    ip("link", "add", name, "type", "bridge")
    ip("addr", "add", f"{HOST}/24", "dev", name)
    ip("link", "set", name, "up")
    yield name
    ip("link", "del", name)


@pytest.fixture(scope="module")
def new_tap(bridge: str) -> Iterator[Callable[[], str]]:
    made: list[str] = []

    def make() -> str:
        made.append(f"qt{os.getpid()}.{len(made)}")
        ip("tuntap", "add", made[-1], "mode", "tap")
        ip("link", "set", made[-1], "master", bridge, "up")
        return made[-1]

    yield make
    for name in made:
        ip("link", "del", name)


@pytest.fixture(scope="module")
def origin(
    new_tap: Callable[[], str], linux_images: LinuxImages, tmp_path_factory: pytest.TempPathFactory
) -> Origin:
    folder = tmp_path_factory.mktemp("origin")
    write_config(folder, linux_images, tap=new_tap(), address=GUEST, vsock=VSOCK)
    vmm = Vmm(folder, "--api-sock", "api.sock", "--config-file", "vmm.json")
    try:
        vmm.wait_console(READY)
        counted = int(fetch(GUEST, "/count"))
        save(vmm, "snap", "mem")
    finally:
        vmm.end()
    (folder / "mem").chmod(0o444)
    return Origin(folder, counted, digest(folder / "mem"))


@pytest.fixture
def load(tmp_path: Path, new_tap: Callable[[], str]) -> Iterator[Callable[..., Vmm]]:
    """Loads a snapshot, in a folder of its own, that has the origin's memory by a second name."""
    made: list[Vmm] = []

    def begin(source: Path, *, resume: bool = True) -> Vmm:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        shutil.copy(source / "rootfs.ext4", folder)
        for name in ("snap", "mem"):
            (folder / name).hardlink_to(source / name)
        made.append(Vmm(folder, "--api-sock", "api.sock"))
        order = {
            "snapshot_path": "snap",
            "mem_backend": {"backend_type": "File", "backend_path": "mem"},
            "resume_vm": resume,
            "enable_diff_snapshots": True,
            "network_overrides": [{"iface_id": "eth0", "host_dev_name": new_tap()}],
        }
        made[-1].must("PUT", "/snapshot/load", order)
        return made[-1]

    yield begin
    for vmm in made:
        vmm.end()


def save(vmm: Vmm, state: str, memory: str, kind: str = "Full") -> None:
    """The machine is paused, and stays so."""
    vmm.must("PATCH", "/vm", {"state": "Paused"})
    order = {"snapshot_path": state, "mem_file_path": memory, "snapshot_type": kind}
    vmm.must("PUT", "/snapshot/create", order)


def become(vmm: Vmm, number: int, old_mac: str = MAC) -> None:
    """Tells the guest its own identity, twice, which is once."""
    fields = [
        ("hostname", f"clone{number}"),
        ("machine_id", f"{number:032x}"),
        ("nic", f"{old_mac},{mac(number)},{address(number)}/24,"),
        ("dns", HOST),
        ("entropy", os.urandom(64).hex()),
        ("time_ms", 2_000_000_000_000),
    ]
    for _ in range(2):
        identify(connect(vmm.folder / "v.sock"), *fields)


def wait_for_count(host: str, above: int) -> int:
    """The guest's counter, once it is beyond a number."""
    while (counted := int(fetch(host, "/count"))) <= above:
        pass
    return counted


def mapped(vmm: Vmm) -> tuple[int, dict[str, int]]:
    """The address of the machine's memory in QEMU, and what the kernel says of it in KiB."""
    pid, inode = vmm.qemu_pid(), (vmm.folder / "mem").stat().st_ino
    facts: dict[str, int] = {}
    found = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            if found:
                break
            found = int(words[0].split("-")[0], 16) if words[4] == str(inode) else 0
        elif found and words[-1] == "kB":
            facts[words[0].rstrip(":")] = int(words[1])
    return found, facts


def live_memory(vmm: Vmm, at: int) -> bytes:
    """All of the guest's memory as QEMU has it."""
    with Path(f"/proc/{vmm.qemu_pid()}/mem").open("rb") as memory:
        memory.seek(at)
        return memory.read(128 << 20)


def test_clones_go_on_as_guests_of_their_own(origin: Origin, load: Callable[..., Vmm]) -> None:
    clones = {number: load(origin.folder) for number in (1, 2)}
    for number, vmm in clones.items():
        become(vmm, number)
    for number, vmm in clones.items():
        assert fetch(address(number)) == f"clone{number}\n"
        wait_for_count(address(number), origin.counted)
        script = "hostname; cat /etc/resolv.conf /etc/machine-id; date +%s; ip -o -4 addr show eth0"
        said = run(connect(vmm.folder / "v.sock"), "sh", "-c", script).out.decode().splitlines()
        assert said[:3] == [f"clone{number}", f"nameserver {HOST}", f"{number:032x}"]
        assert 2_000_000_000 <= int(said[3]) < 2_000_000_600
        assert [line.split()[3] for line in said[4:]] == [f"{address(number)}/24"]
        facts = mapped(vmm)[1]
        assert facts["Shared_Clean"] > facts["Private_Dirty"] // 4 > 0
    assert digest(origin.folder / "mem") == origin.memory


def test_a_loaded_machine_is_saved_and_loaded_again(
    origin: Origin, load: Callable[..., Vmm]
) -> None:
    """In full, as a Diff, and over the name of the very file that its memory comes from."""
    clone = load(origin.folder)
    become(clone, 3)
    content = os.urandom(3 << 20)
    put(
        connect(clone.folder / "v.sock"),
        "/run/kept",
        [content[at : at + 65536] for at in range(0, len(content), 65536)],
    )
    counted = wait_for_count(address(3), origin.counted)
    at, _ = mapped(clone)
    save(clone, "snap.diff", "diff", "Diff")
    live = digest_of(live_memory(clone, at))
    clone.must("PUT", "/snapshot/create", {"snapshot_path": "snap.full", "mem_file_path": "mem"})
    assert digest(clone.folder / "mem") == live
    assert digest(origin.folder / "mem") == origin.memory
    assert digest_of(laid_over(origin.folder / "mem", clone.folder / "diff")) == live
    blocks = [(clone.folder / name).stat().st_blocks for name in ("diff", "mem")]
    assert blocks[0] < blocks[1]
    clone.must("PATCH", "/vm", {"state": "Resumed"})
    wait_for_count(address(3), counted + 2)
    clone.end()

    (clone.folder / "snap").unlink()
    (clone.folder / "snap.full").rename(clone.folder / "snap")
    again = load(clone.folder, resume=False)
    at, _ = mapped(again)
    assert digest_of(live_memory(again, at)) == live
    again.must("PATCH", "/vm", {"state": "Resumed"})
    assert fetch(address(3)) == "clone3\n"
    become(again, 4, mac(3))
    wait_for_count(address(4), counted + 2)
    kept = run(connect(again.folder / "v.sock"), "sha256sum", "/run/kept").out.split()[0]
    assert kept.decode() == hashlib.sha256(content).hexdigest()
    assert dict(ask(connect(again.folder / "v.sock"), "health"))["hostname"] == "clone4"


def laid_over(base: Path, diff: Path) -> bytes:
    """What a snapshot's memory is with a Diff's data over it."""
    merged = bytearray(base.read_bytes())
    with diff.open("rb") as file:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return bytes(merged)
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            merged[at:end] = os.pread(file.fileno(), end - at, at)
            at = end
