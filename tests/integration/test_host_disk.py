"""``nexus host init``: a file system with shared blocks on a loop device, and its end."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexus.api.errors import Conflict, NoCapacity, NotFound
from nexus.images.store import Store
from nexus.up import disk, down, reflink
from nexus.up.place import DEFAULT_BIND, Place
from tests.parts import REPO

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "d", DEFAULT_BIND, "auto")
    yield made
    disk.remove(made)


def host_init(place: Place, *options: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nexus", "host", "init", "--data", str(place.data), *options],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout + done.stderr


def loops(place: Place) -> list[Any]:
    done = subprocess.run(["losetup", "-J", "-l"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout or '{"loopdevices": []}')["loopdevices"]
    return [loop for loop in found if str(place.data) in loop["back-file"]]


def taken(folder: Path) -> int:
    now = os.statvfs(folder)
    return (now.f_blocks - now.f_bfree) * now.f_frsize


def test_from_the_first_clone_to_nothing_left(place: Place) -> None:
    store = Store(place.data / "store")
    source = place.data / "root"
    source.write_bytes(os.urandom(32 * MIB))
    blob = store.import_file(source)
    vm = place.data / "fc" / "vms" / "one"
    vm.mkdir(parents=True, mode=0o700)
    store.link(blob.sha256, vm / "kernel")
    os.mkfifo(vm / "console.in", 0o600)
    place.new_disk_file.write_bytes(b"left by one that was killed")

    options = ("--size", "640M", "--measure", "32M")
    facts = json.loads(host_init(place, *options, "-o", "json"))
    assert (facts["made"], facts["size_mib"]) == (True, 640)
    assert facts["clone_before_ms"] > 0 < facts["clone_after_ms"]
    assert sorted(file.name for file in place.data.iterdir()) == ["disk", "disk.xfs", "root"]
    assert place.environment()["FC_RUN_DIR"] == str(place.disk / "fc")
    assert reflink.can_share(place.disk)
    store = Store(place.disk / "store")
    assert store.path(blob.sha256).samefile(place.disk / "fc" / "vms" / "one" / "kernel")
    before = taken(place.disk)
    store.clone(blob.sha256, place.disk / "fc" / "vms" / "one" / "rootfs.ext4")
    assert taken(place.disk) - before < 4 * MIB, "the clone has blocks of its own"

    # A second time, and after a reboot, it is only mounted.
    subprocess.run(["umount", str(place.disk)], check=True)
    again = disk.init(place, None, 0)
    assert (again.made, again.size_mib, again.clone_after_ms) == (False, 640, None)
    assert store.has(blob.sha256)

    with place.lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="is running"):
            disk.undo(place)
    with subprocess.Popen(["sleep", "60"], cwd=place.disk / "fc" / "vms" / "one") as vmm:
        with pytest.raises(Conflict, match="VMs run"):
            disk.undo(place)
        vmm.kill()
    host_init(place, "--undo")
    assert loops(place) == []
    assert sorted(file.name for file in place.data.iterdir()) == ["fc", "root", "store"]
    assert (vm / "kernel").samefile(Store(place.data / "store").path(blob.sha256))
    assert (vm / "rootfs.ext4").read_bytes() == source.read_bytes()
    assert (vm / "console.in").is_fifo()
    with pytest.raises(NotFound):
        disk.undo(place)


def test_down_removes_it(place: Place) -> None:
    place.prepare()
    disk.init(place, 512, 0)
    (place.disk / "fc").mkdir()
    subprocess.run(["umount", str(place.disk)], check=True)
    down.down(place)
    assert (loops(place), place.data.exists()) == ([], False)


def test_what_cannot_be(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoCapacity):
        disk.init(place, 1 << 40, 0)
    monkeypatch.setattr(disk, "_move", lambda *_: disk._run(["false"], "no"))
    with pytest.raises(Conflict):
        disk.init(place, 512, 0)
    assert list(place.data.iterdir()) == []
