"""Writing a small file as a whole: a reader, or a restart, sees the old text or the new."""

import os
from pathlib import Path


def write_atomically(
    path: Path, data: bytes, *, mode: int = 0o600, group: int | None = None
) -> None:
    """Replaces ``path`` with ``data``. With ``group``, it is that group's to read as well.

    Safe against the death of the writer at any point. It does not wait for the disk: after a loss
    of power every VMM is gone too, and the file system keeps the rename ordered. Raises OSError,
    and then leaves nothing of the new text.
    """
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if group is not None:
                os.fchown(descriptor, -1, group)
                os.fchmod(descriptor, mode | 0o040)
            file.write(data)
        fresh.replace(path)
    except OSError:
        # A full disk must not fill up with halves.
        fresh.unlink(missing_ok=True)
        raise
