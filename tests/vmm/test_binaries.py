"""Finding the programs, and asking their versions."""

import sys
from pathlib import Path

import pytest

from nexus.vmm.binaries import (
    Version,
    find_firecracker,
    find_jailer,
    nexus_qemu_command,
    version_of,
)
from nexus.vmm.errors import BinaryBroken, BinaryMissing


def program(path: Path, text: str = "#!/bin/sh\necho Firecracker v1.14.2\n") -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_explicit_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FC_BINARY", str(program(tmp_path / "environment")))
    explicit = program(tmp_path / "explicit")
    assert find_firecracker(explicit) == explicit


def test_environment_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "firecracker")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FC_BINARY", raising=False)
    assert find_firecracker() == tmp_path / "firecracker"
    named = program(tmp_path / "named")
    monkeypatch.setenv("FC_BINARY", str(named))
    assert find_firecracker() == named


def test_missing_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAILER_BINARY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryMissing) as caught:
        find_jailer()
    assert "JAILER_BINARY" in (caught.value.suggestion or "")


def test_file_that_is_not_executable(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with pytest.raises(BinaryMissing, match="not an executable"):
        find_firecracker(tmp_path / "plain")


def test_version(tmp_path: Path) -> None:
    version = version_of([str(program(tmp_path / "fc"))])
    assert version == Version(1, 14, 2)
    assert version >= (1, 12, 0)
    assert str(version) == "1.14.2"


@pytest.mark.parametrize(
    "text",
    ["#!/bin/sh\necho hello\n", "#!/bin/sh\necho v1.2.3\nexit 3\n", "not a program"],
)
def test_broken(tmp_path: Path, text: str) -> None:
    with pytest.raises(BinaryBroken):
        version_of([str(program(tmp_path / "fc", text))])


@pytest.mark.firecracker
def test_real_versions(firecracker_binary: Path, jailer_binary: Path) -> None:
    assert version_of([str(firecracker_binary)]) == version_of([str(jailer_binary)])


def test_nexus_qemu_answers_with_a_version() -> None:
    assert nexus_qemu_command()[0] == sys.executable
    assert version_of(nexus_qemu_command()) >= (1, 12, 0)
