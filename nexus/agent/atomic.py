"""Writing a small file as a whole: a reader, or a restart, sees the old text or the new."""

import ctypes
import errno
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
# <linux/fs.h>
_SYNC_FILE_RANGE_WRITE = 2
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

_NO_LINK = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
"""The folder may be one that a VMM writes to, which may be a hostile one."""


def write_atomically(
    path: Path, data: bytes, *, mode: int = 0o600, group: int | None = None
) -> None:
    """Replaces ``path`` with ``data``. With ``group``, it is that group's to read as well.

    Safe against the death of the writer at any point. It does not wait for the disk: after a loss
    of power every VMM is gone too, and the file system keeps the rename ordered. Raises OSError,
    and then leaves nothing of the new text.
    """
    fresh = path.with_name(f".{path.name}.new")
    descriptor = _create(fresh, mode)
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


def write_often(path: Path, data: bytes) -> None:
    """The same for a text of a few kilobytes that changes again and again, mode 0600.

    The file and a spare one beside it take turns. To remove the file that is replaced would wait
    for the disk, which may still be writing it: milliseconds, where this takes a tenth of one. As
    with a rename in ext4, the new text is on its way to the disk before it gets the name. A reader
    must not hold the file open over two changes.
    """
    if not path.exists():
        # There is nothing to remove, so nothing to wait for.
        write_atomically(path, data)
        return
    spare = spare_of(path)
    descriptor = _open_spare(spare)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.truncate()
            file.flush()
            _libc.sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)
        _exchange(spare, path)
    except OSError:
        spare.unlink(missing_ok=True)
        raise


def spare_of(path: Path) -> Path:
    """The file that takes turns with one that is written often."""
    return path.with_name(f".{path.name}.spare")


def _create(fresh: Path, mode: int) -> int:
    """A new file, in the place of what a writer left that died."""
    try:
        return os.open(fresh, _NO_LINK | os.O_EXCL, mode)
    except FileExistsError:
        fresh.unlink()
        return os.open(fresh, _NO_LINK | os.O_EXCL, mode)


def _open_spare(spare: Path) -> int:
    try:
        return os.open(spare, _NO_LINK, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        spare.unlink()
        return os.open(spare, _NO_LINK, 0o600)


def _exchange(spare: Path, path: Path) -> None:
    """Renames each to the other; where that is not known, only the spare."""
    given = _AT_FDCWD, os.fsencode(spare), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE
    if _libc.renameat2(*given) == 0:
        return
    failed = ctypes.get_errno()
    if failed not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(failed, os.strerror(failed), os.fspath(path))
    spare.replace(path)
