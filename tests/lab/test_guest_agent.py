"""The guest's agent over Firecracker's own vsock, in a real Linux guest and in a clone of it."""

from pathlib import Path

import pytest

from tests.lab import lab
from tests.parts import LinuxImages

pytestmark = [pytest.mark.firecracker, pytest.mark.qemu, pytest.mark.alone]
DEADLINE_S = 180


def test_the_agent_answers_over_firecrackers_vsock(
    linux_images: LinuxImages, firecracker_binary: Path, tmp_path: Path
) -> None:
    said = lab.run(lab.build(tmp_path, linux_images, firecracker_binary), DEADLINE_S)
    assert "\nlab: ended\n" in said, said
    heard = said.partition("lab: began\n")[2].partition("lab: consoles\n")[0]
    lines = [line.rstrip() for line in heard.splitlines()]
    health = next(line for line in lines if line.startswith("R version="))
    assert "hostname=inner" in health
    assert "ready=1" in health
    for line in (
        "O guest says 42",
        "T err",
        "C 7",
        "O 33 77",
        "C 0",
        "O still here",
        "O clone kept",
        "R ok=1",
        "other",
        "O 06:00:00:00:00:02",
    ):
        assert line in lines, said
    stat = next(line for line in lines if line.startswith("R kind="))
    assert stat.startswith("R kind=file mode=755 size=")
