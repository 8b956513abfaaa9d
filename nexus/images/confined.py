"""How programs are run that read what strangers made: bounded, and never outliving us."""

from nexus.images import tools

TIMEOUT_S = 1800.0
"""The longest that one conversion or check may take."""
MEMORY_BYTES = 1 << 30


def command(
    *arguments: str, file_bytes: int | None = None, memory_bytes: int | None = MEMORY_BYTES
) -> list[str]:
    """A command line with bounds: memory, processor time, core dumps, the size of its files.

    It is killed when the thread that started it ends. Raises ToolMissing.
    """
    bounds = [f"--cpu={TIMEOUT_S:.0f}", "--core=0"]
    if memory_bytes is not None:
        bounds.append(f"--as={memory_bytes}")
    if file_bytes is not None:
        bounds.append(f"--fsize={file_bytes}")
    return [
        *(tools.find("setpriv"), "--no-new-privs", "--pdeathsig", "KILL", "--"),
        *(tools.find("prlimit"), *bounds, "--"),
        *(tools.find(arguments[0]), *arguments[1:]),
    ]
