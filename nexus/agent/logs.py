"""The ends of logs, in bounded reads."""

import os
from pathlib import Path

from nexus.agent.layout import VmPaths
from nexus.agent.nofollow import NoFile, opened
from nexus.api.vms import LogChunk, LogSource

MAX_READ_BYTES = 1 << 20
MAX_LINES = 10_000


def log_file(paths: VmPaths, source: LogSource) -> Path:
    return paths.console_log if source == "console" else paths.vmm_log


def read_log(file: Path, source: LogSource, tail: int, offset: int | None) -> LogChunk:
    """The last ``tail`` lines, at most of the last MiB; with ``offset`` those from there on.

    The chunk's offset is where to go on. A log that does not exist yet is empty, and so is what a
    VMM put in its place.
    """
    try:
        with opened(file) as log:
            size = os.fstat(log).st_size
            first = max(0, size - MAX_READ_BYTES)
            if offset is not None:
                first = max(first, offset if offset <= size else 0)
            data = os.pread(log, size - first, first)
    except (FileNotFoundError, NoFile):
        return LogChunk(source=source, lines=[], offset=0)
    lines = data.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return LogChunk(source=source, lines=lines[-tail:] if tail else [], offset=first + len(data))
