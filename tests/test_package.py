"""What an installed Nexus consists of."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
            *("--disable-pip-version-check", "-w", str(out), str(repo)),
        ],
        check=True,
    )
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_carries_both_commands(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(name).decode()
    assert re.search(r"^nexus\s*=", text, re.MULTILINE)
    assert re.search(r"^nexus-qemu\s*=", text, re.MULTILINE)


def test_the_wheel_carries_every_file_of_the_package(wheel: zipfile.ZipFile, repo: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "nexus"], cwd=repo, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(tracked) <= set(wheel.namelist())


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_lock_files_pin_hashes_and_name_no_host(repo: Path, lock: str) -> None:
    text = (repo / lock).read_text()
    assert "://" not in text
    pinned = re.findall(r"^[a-z0-9-]+(?:\[[a-z]+\])?==\S+", text, re.MULTILINE)
    assert len(pinned) > 20
    assert text.count(" \\\n    --hash=sha256:") >= len(pinned)


@pytest.mark.parametrize("module", ["nexus", "nexus.qemu"])
def test_commands_explain_themselves(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    )
    assert "--" in done.stdout
