"""Room that nothing from outside may take: what images share a disk with must go on working.

With the database on the same disk nothing could be deleted any more once it is full to the brim,
since a deletion is a change of the database, too.
"""

import errno
import os
from pathlib import Path

SPARE_BYTES = 64 << 20
"""What is left free of a disk that images lie on."""


def left(place: int | Path) -> int:
    """How many bytes images may still take, where a file or folder lies; may be less than 0."""
    found = os.fstatvfs(place) if isinstance(place, int) else os.statvfs(place)
    return found.f_bavail * found.f_frsize - SPARE_BYTES


def leave(place: int | Path, more_bytes: int) -> None:
    """Raises OSError, as a full disk does, when so much more would not leave enough."""
    if more_bytes > left(place):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
