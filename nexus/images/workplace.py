"""Folders and files in the making, and clearing those that a killed process left behind.

Whoever makes one holds a file lock on it. The lock ends with the process, however it ends, so what
can be locked belongs to nobody.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".nexus-making-"


@contextmanager
def folder(parent: Path) -> Iterator[Path]:
    """A private folder in ``parent``, on the same file system, removed at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    clear(parent)
    lock, made = _locked(lambda: _new_folder(parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


@contextmanager
def file(parent: Path) -> Iterator[tuple[int, Path]]:
    """A private empty file in ``parent``, open for reading and writing, and its path.

    Whoever wants to keep it renames it; what is still there at the end is removed.
    """
    descriptor, path = _locked(lambda: _new_file(parent))
    try:
        yield descriptor, path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _new_folder(parent: Path) -> tuple[int, Path]:
    while True:
        made = Path(tempfile.mkdtemp(dir=parent, prefix=PREFIX))
        try:
            return os.open(made, os.O_RDONLY | os.O_DIRECTORY), made
        except FileNotFoundError:  # cleared before it could be opened
            continue


def _new_file(parent: Path) -> tuple[int, Path]:
    descriptor, name = tempfile.mkstemp(dir=parent, prefix=PREFIX)
    return descriptor, Path(name)


def _locked(make: Callable[[], tuple[int, Path]]) -> tuple[int, Path]:
    """Makes something and locks it. Another process may clear it before the lock: make it again."""
    while True:
        descriptor, path = make()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor, path
        os.close(descriptor)


def clear(parent: Path) -> int:
    """Removes what dead processes were making in ``parent``; returns how many that were."""
    removed = 0
    for left in parent.glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:  # kept or cleared by another process meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
            removed += 1
        finally:
            os.close(descriptor)
    return removed
