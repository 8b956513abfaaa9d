"""Opening files in a folder that a VMM may write to, which may be a hostile one in its jail."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoFile(OSError):
    """What has that name is a link, a pipe, a folder: no regular file."""


@contextmanager
def opened(file: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of a regular file; opening never waits. Raises NoFile or another OSError."""
    try:
        descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NoFile(error.errno, "a link", str(file)) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NoFile(errno.EINVAL, "not a regular file", str(file))
        yield descriptor
    finally:
        os.close(descriptor)
