"""Opening files that users name: only under the image root, by the kernel's own resolving.

A path is opened once, relative to a descriptor of the root, with ``openat2`` and
``RESOLVE_BENEATH`` (Linux 5.6, openat2(2)); all that follows uses that descriptor. No check of a
path's text decides, so that no race between a check and a use can.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nexus.api.errors import NotFound, PathRefused, ValidationFailed

_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_ATTEMPTS = 8

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


@contextmanager
def open_under(root: Path, given: str) -> Iterator[int]:
    """A read-only descriptor of the regular, non-empty file that ``given`` names under ``root``.

    ``given`` is relative to the root, or absolute and under it. Raises PathRefused for everything
    that is not a readable regular file inside the root, NotFound, and ValidationFailed for an
    empty file or an impossible path.
    """
    relative = _relative(root, given)
    try:
        handle = _resolve(root, relative)
        try:
            _check_file(root, given, os.fstat(handle))
            descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK)
        finally:
            os.close(handle)
    except OSError as error:
        raise _explained(root, given, error) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _relative(root: Path, given: str) -> str:
    if "\x00" in given:
        raise ValidationFailed("the path holds a NUL", suggestion=_cure(root))
    parts = Path(given).parts
    if ".." in parts:
        raise _refused(root, given, "leads through '..'")
    if not given.startswith("/"):
        return given
    for base in (root, Path(os.path.realpath(root))):
        if Path(given).is_relative_to(base):
            return str(Path(given).relative_to(base))
    raise _refused(root, given, "is not under the image root")


def _resolve(root: Path, relative: str) -> int:
    """An O_PATH descriptor: nothing is opened yet, so a FIFO cannot hang nor a device wake."""
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            return _openat2(base, relative, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        # An absolute link may still point back under the root: then the place it names is opened,
        # with no link followed any more.
        home = Path(os.path.realpath(root))
        target = Path(os.path.realpath(home / relative))
        if not target.is_relative_to(home):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        inside = str(target.relative_to(home))
        return _openat2(base, inside, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
    finally:
        os.close(base)


def _openat2(base: int, path: str, resolve: int) -> int:
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, resolve)
    name = os.fsencode(path)
    problem = 0
    for _ in range(_ATTEMPTS):
        handle = int(_libc.syscall(_SYS_OPENAT2, base, name, ctypes.byref(how), ctypes.sizeof(how)))
        if handle >= 0:
            return handle
        problem = ctypes.get_errno()
        # EAGAIN: a rename went on meanwhile, and the kernel could not prove that it stayed inside.
        if problem not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(problem, os.strerror(problem))


def _check_file(root: Path, given: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _refused(root, given, "is not a regular file")
    if found.st_size == 0:
        raise ValidationFailed(f"{_shown(given)} is empty", suggestion="copy the image again")


def _explained(root: Path, given: str, error: OSError) -> Exception:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"there is no file {_shown(given)} under {root}", suggestion=_cure(root))
    if error.errno in (errno.EXDEV, errno.ELOOP):
        return _refused(root, given, "leads out of the image root")
    if error.errno in (errno.EACCES, errno.EPERM):
        return _refused(root, given, "may not be read by the manager")
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
        return ValidationFailed("the path is too long", suggestion=_cure(root))
    return error


def _refused(root: Path, given: str, why: str) -> PathRefused:
    message = f"{_shown(given)} {why}: images are registered from files under {root} only"
    return PathRefused(message, suggestion=_cure(root))


def _cure(root: Path) -> str:
    return f"copy the file into {root} and give its path there"


def _shown(given: str) -> str:
    return repr(given if len(given) <= 200 else given[:200] + "…")
