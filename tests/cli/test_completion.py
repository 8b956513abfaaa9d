"""What a shell gets for a Tab."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.calling import environment
from tests.client.wire import Wire, make_image, make_vm

NEXUS = Path(sys.executable).with_name("nexus")


def tab(wire: Wire, line: str, shell: str = "bash") -> list[str]:
    """The words offered at the end of ``line``."""
    words = line.split(" ")
    asking = {
        "_NEXUS_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    shown = subprocess.run(
        [NEXUS],
        env=environment(wire) | asking,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.stderr == ""
    return shown.stdout.split()


@pytest.mark.parametrize("command", ["show", "rm -f", "events", "stop web", "logs"])
def test_names_of_vms(wire: Wire, command: str) -> None:
    wire.vms = [make_vm("web"), make_vm("worker"), make_vm("db")]
    assert tab(wire, f"nexus {command} w") == ["web", "worker"]


@pytest.mark.parametrize("command", ["run", "image show", "run x --kernel"])
def test_names_of_images(wire: Wire, command: str) -> None:
    wire.images = [make_image("rootfs", "busybox"), make_image("kernel", "debian")]
    assert tab(wire, f"nexus {command} bus") == ["busybox"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(wire: Wire, shell: str) -> None:
    assert any("web" in word for word in tab(wire, "nexus show w", shell))


def test_commands_need_no_manager(wire: Wire, free_port: int) -> None:
    wire.url = f"http://127.0.0.1:{free_port}"
    assert "show" in tab(wire, "nexus sho")
    assert tab(wire, "nexus show w") == []


def test_a_refusal_is_silent(wire: Wire) -> None:
    wire.failures = [401]
    assert tab(wire, "nexus show w") == []
