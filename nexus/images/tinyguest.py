"""Compiles the tiny test guest: an ELF kernel that Firecracker boots in a millisecond."""

import tempfile
from pathlib import Path

from nexus.images import tools

SOURCES = Path(__file__).resolve().parent.parent / "guest" / "tiny"

FLAGS = (
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-pic",
    "-fno-pie",
    "-no-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mgeneral-regs-only",
    "-mno-red-zone",
    "-mcmodel=kernel",
    "-nostdlib",
    "-static",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
    "-Wl,--no-warn-rwx-segments",
)


def build(out: Path) -> Path:
    """Compiles the tiny guest to ``out``, replacing it whole, and returns its path.

    Raises ToolMissing without gcc, BuildError with what the compiler said.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".tiny-") as work:
        made = Path(work) / "tiny.elf"
        tools.run(
            [
                "gcc",
                *FLAGS,
                f"-Wl,-T,{SOURCES / 'link.ld'}",
                "-o",
                str(made),
                str(SOURCES / "entry.S"),
                str(SOURCES / "tiny.c"),
            ],
            suggestion="apt-get install gcc, and check that it compiles for x86-64",
        )
        made.chmod(0o644)
        made.replace(out)
    return out
