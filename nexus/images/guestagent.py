"""Compiles the guest's agent: one static program that serves exec, cp and health inside a guest."""

import tempfile
from pathlib import Path

from nexus.images import tools
from nexus.images.skeleton import GUEST

SOURCES = GUEST / "agent"
NAME = "usr/sbin/nexus-guest-agent"
"""Where it lies in a guest, relative to the root."""

FLAGS = (
    "-std=gnu11",
    "-Os",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffunction-sections",
    "-fdata-sections",
    "-static",
    "-s",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
)


def build(out: Path) -> Path:
    """Compiles the agent to ``out``, replacing it whole, and returns its path.

    The same compiler and C library give the same bytes. Raises ToolMissing without gcc, BuildError
    with what the compiler said.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    sources = sorted(path.name for path in SOURCES.glob("*.c"))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".agent-") as work:
        made = Path(work) / "agent"
        tools.run(
            ["gcc", *FLAGS, "-o", str(made), *sources],
            cwd=SOURCES,
            suggestion="apt-get install gcc libc6-dev, and check that it compiles for x86-64",
        )
        made.chmod(0o755)
        made.replace(out)
    return out
