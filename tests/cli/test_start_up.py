"""The command starts fast: what a command does not need is not imported."""

import subprocess
import sys

import pytest

from tests.cli.calling import command


@pytest.mark.parametrize("module", ["pydantic", "httpx", "rich", "websockets", "fastapi"])
def test_help_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, nexus.__main__; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_of_the_whole_command() -> None:
    shown = subprocess.run(command("--help"), capture_output=True, check=True)
    assert b"console" in shown.stdout


def test_a_client_imports_none_of_its_parts_before_they_are_used() -> None:
    code = (
        "import sys; from nexus.client import Client; Client('http://127.0.0.1:9', 'x').vms;"
        "print(*(m for m in sys.modules if m.startswith('nexus.client.')))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    imported = set(shown.stdout.split())
    assert "nexus.client.vms" in imported
    assert not imported & {
        f"nexus.client.{part}" for part in ("async_client", "images", "rollouts")
    }
