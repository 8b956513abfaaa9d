"""Firecracker's command line, the same for nexus-qemu."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.vmm.lab import Lab
from tests.vmm.vmm_process import Engine

pytestmark = pytest.mark.root

BAD_ARGUMENTS = 153
FAILED = 1


def run(engine: Engine, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*engine.command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        cwd=folder,
    )


def test_version(engine: Engine, tmp_path: Path) -> None:
    done = run(engine, tmp_path, "--version")
    assert done.returncode == 0
    assert re.match(r"(Firecracker|nexus-qemu) v?\d+\.\d+\.\d+", done.stdout)


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_names_the_arguments(engine: Engine, tmp_path: Path, argument: str) -> None:
    done = run(engine, tmp_path, argument)
    assert done.returncode == 0
    for name in ("--api-sock", "--config-file", "--id", "--no-api", "--log-path", "--metrics-path"):
        assert name in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--fly"], id="unknown argument"),
        pytest.param(["--id"], id="argument without its value"),
        pytest.param(["--no-api"], id="no API and no file"),
        pytest.param(["--id", "a", "--id", "b"], id="argument twice"),
    ],
)
def test_bad_arguments(engine: Engine, tmp_path: Path, arguments: list[str]) -> None:
    assert run(engine, tmp_path, *arguments).returncode == BAD_ARGUMENTS


def test_bad_id(engine: Engine, tmp_path: Path) -> None:
    assert run(engine, tmp_path, "--id", "no/slash", "--api-sock", "a.sock").returncode != 0


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{", id="half an object"),
        pytest.param('{"drives": []}', id="no boot source"),
        pytest.param(
            '{"boot-source": {"kernel_image_path": "nope"}, "drives": []}', id="no kernel"
        ),
    ],
)
def test_bad_config_file(engine: Engine, tmp_path: Path, text: str) -> None:
    (tmp_path / "vmm.json").write_text(text)
    done = run(engine, tmp_path, "--no-api", "--config-file", "vmm.json")
    assert done.returncode == FAILED, done.stdout


def test_taken_socket_is_an_error(lab: Lab, engine: Engine) -> None:
    vmm = lab.with_api()
    done = run(engine, vmm.folder, "--api-sock", "api.sock")
    assert done.returncode != 0
    vmm.wait_for_api()
