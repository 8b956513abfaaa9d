"""Turns between processes: an exclusive lock on a folder, let go by the kernel if we die."""

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

from anyio import to_thread


@contextlib.asynccontextmanager
async def turn(folder: Path) -> AsyncIterator[None]:
    """Holds ``flock`` on ``folder``, made if it is missing; waits off the event loop."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        await to_thread.run_sync(fcntl.flock, handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
