"""The builds themselves, from cached packages."""

import json
import subprocess
import sys
from pathlib import Path

from nexus.images import busybox, guestagent, workplace
from nexus.images.debs import Packages
from tests.parts import CACHE, REPO, LinuxImages


def test_two_builds_give_the_same_root(linux_images: LinuxImages, tmp_path: Path) -> None:
    packages = Packages(CACHE / "packages")
    again = busybox.build(tmp_path, packages=packages)
    assert again.read_bytes() == linux_images.rootfs.read_bytes()
    assert again.stat().st_blocks * 512 < 8 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["rootfs.ext4"]


def test_what_a_killed_build_left_goes_with_the_next(
    linux_images: LinuxImages, tmp_path: Path
) -> None:
    left = tmp_path / f"{workplace.PREFIX}abc"
    (left / "tree").mkdir(parents=True)
    busybox.build(tmp_path, packages=Packages(CACHE / "packages"))
    assert not left.exists()


def test_the_command_ends_with_its_artifacts(linux_images: LinuxImages, tmp_path: Path) -> None:
    done = run_build("busybox", tmp_path / "out", CACHE / "packages")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    shares = [line["progress"] for line in lines[:-1]]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    path = str(tmp_path / "out" / "rootfs.ext4")
    assert lines[-1] == {"artifacts": [{"kind": "rootfs", "name": "busybox", "path": path}]}


def test_a_failed_build_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_build("busybox", tmp_path / "file" / "out", CACHE / "packages")
    assert done.returncode == 1
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["error"]
    assert last["suggestion"]


def run_build(recipe: str, out: Path, cache: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "nexus.images", "build", recipe, "--out", str(out)],
        cwd=REPO,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NEXUS_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_builds_give_the_same_guest_agent(tmp_path: Path) -> None:
    first = guestagent.build(tmp_path / "one" / "agent")
    second = guestagent.build(tmp_path / "two" / "another-name")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in first.parent.iterdir()] == ["agent"]
