"""The host's memory, as its kernel counts it."""

from pathlib import Path

FILE = Path("/proc/meminfo")


def meminfo() -> dict[str, int]:
    """What there is, by the kernel's names, in KiB."""
    found = {}
    for line in FILE.read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found
