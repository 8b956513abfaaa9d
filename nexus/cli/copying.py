"""``nexus cp``: files and directories into a guest, and out of it."""

import os
import posixpath
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nexus.api.guest import FileKind
from nexus.cli.exits import UsageFault
from nexus.cli.session import Session
from nexus.client import Client, NexusApiError, NotFoundError

PIECE_BYTES = 65536
LARGE_BYTES = 1 << 20
"""From this size on a file has a progress bar."""
_IN_GUEST = re.compile(r"([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?):(.*)", re.DOTALL)


@dataclass(frozen=True)
class GuestPlace:
    """A path in a VM's guest."""

    vm: str
    path: str


def copy(session: Session, source: str, target: str, *, recursive: bool) -> None:
    """Copies; what cannot be copied as it is, is told and skipped, and the exit code is then 1."""
    here, there = _place(source), _place(target)
    with session.client() as client:
        if isinstance(there, GuestPlace) and isinstance(here, str):
            copier = Copier(client, there.vm)
            copier.put(here, there.path, recursive=recursive)
        elif isinstance(here, GuestPlace) and isinstance(there, str):
            copier = Copier(client, here.vm)
            copier.get(here.path, there, recursive=recursive)
        elif isinstance(here, GuestPlace):
            raise UsageFault(f"from VM to VM: nexus cp {source} - | nexus cp - {target}")
        else:
            raise UsageFault("neither is in a VM; write one of them as NAME:/path")
    if copier.skipped:
        sys.exit(1)


def _place(text: str) -> GuestPlace | str:
    match = _IN_GUEST.fullmatch(text)
    if match is None:
        return text
    if not match[2].startswith("/"):
        raise UsageFault(f"{text!r}: a guest's path begins with /, a local file {text!r} with ./")
    return GuestPlace(match[1], match[2])


class Copier:
    """Copies between this machine and one guest."""

    def __init__(self, client: Client, vm: str) -> None:
        self._vms = client.vms
        self._vm = vm
        self.skipped = False
        """Whether something was left out."""

    # -- into the guest ------------------------------------------------------------------------

    def put(self, source: str, path: str, *, recursive: bool) -> None:
        """Copies a file, a directory, or ``-`` into the guest."""
        if source == "-":
            if self._is_directory(path):
                raise UsageFault(f"{path} is a directory; give the name of a file in it")
            self._vms.put_file(self._vm, path, _blocks(sys.stdin.buffer))
            return
        local = Path(source)
        if local.is_dir() and not recursive:
            raise UsageFault(f"{source} is a directory; to copy all of it: nexus cp -r")
        name = local.name if local.name != ".." else ""
        target = self._target(path, name)
        if local.is_dir():
            self._put_directory(local, target)
        else:
            self._put_file(local, target)

    def _put_file(self, local: Path, path: str) -> None:
        with _opened(local) as file:
            found = os.fstat(file.fileno())
            mode = stat.S_IMODE(found.st_mode) & 0o777
            with _shown(local.name, found.st_size) as progress:
                self._vms.put_file(self._vm, path, _counted(_blocks(file), progress), mode=mode)

    def _put_directory(self, local: Path, path: str) -> None:
        try:
            mode = stat.S_IMODE(local.stat().st_mode) & 0o777
            entries = sorted(local.iterdir())
        except OSError as error:
            raise UsageFault(f"{local} cannot be read: {error.strerror}") from error
        self._ensure_directory(path, mode)
        for entry in entries:
            target = posixpath.join(path, entry.name)
            if entry.is_dir() and not entry.is_symlink():
                self._put_directory(entry, target)
            elif entry.is_file():
                self._put_file(entry, target)
            else:
                self._skip(str(entry), "not a file, nor a link to one")

    def _ensure_directory(self, path: str, mode: int) -> None:
        try:
            self._vms.make_directory(self._vm, path, mode=mode)
        except NexusApiError as error:
            if not (error.fault_message or "").startswith("EEXIST") or not self._is_directory(path):
                raise

    def _target(self, path: str, name: str) -> str:
        """Where a thing of that name goes: into a directory that is there, else to the path."""
        if self._is_directory(path):
            return posixpath.join(path, name) if name else path
        if path.endswith("/") and len(path) > 1:
            return path.rstrip("/")
        return path

    def _is_directory(self, path: str) -> bool:
        return self._kind(path) == "dir"

    def _kind(self, path: str) -> FileKind | None:
        """What is at a path, behind links; None when there is nothing."""
        try:
            found = self._vms.stat_file(self._vm, path).kind
            if found != "link":
                return found
            return self._vms.stat_file(self._vm, posixpath.join(path, ".")).kind
        except NotFoundError as error:
            if error.fault_message is None:
                raise  # it is the VM that is not there
            return None
        except NexusApiError as error:
            if (error.fault_message or "").startswith("ENOTDIR"):
                return "file"
            raise

    # -- out of the guest ------------------------------------------------------------------------

    def get(self, path: str, target: str, *, recursive: bool) -> None:
        """Copies a file or a directory of the guest to this machine, or to ``-``."""
        is_directory = self._is_directory(path)
        if is_directory and (not recursive or target == "-"):
            raise UsageFault(f"{path} is a directory; to copy all of it: nexus cp -r")
        local = Path(target)
        name = posixpath.basename(path.rstrip("/"))
        if target != "-" and local.is_dir() and name:
            local = local / _checked(name)
        if is_directory:
            self._get_directory(path, local)
        elif target == "-":
            with self._vms.get_file(self._vm, path) as file:
                for piece in file:
                    sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
        else:
            self._get_file(path, local)

    def _get_file(self, path: str, local: Path) -> None:
        with (
            self._vms.get_file(self._vm, path) as file,
            _written(local, file.mode & 0o777) as copy_,
            _shown(local.name, file.size_bytes) as progress,
        ):
            for piece in _counted(file, progress):
                copy_.write(piece)

    def _get_directory(self, path: str, local: Path) -> None:
        try:
            local.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageFault(f"{local} cannot be made: {error.strerror}") from error
        for entry in self._vms.list_files(self._vm, path):
            source = posixpath.join(path, entry.name)
            if "\ufffd" in entry.name:
                self._skip(source, "its name is not UTF-8")
            elif entry.kind == "dir":
                self._get_directory(source, local / _checked(entry.name))
            elif entry.kind == "file" or (entry.kind == "link" and self._kind(source) == "file"):
                self._get_file(source, local / _checked(entry.name))
            else:
                self._skip(source, "not a file, nor a link to one")

    def _skip(self, what: str, why: str) -> None:
        self.skipped = True
        print(f"nexus: skipped {what!r}: {why}", file=sys.stderr)


def _checked(name: str) -> str:
    """A name that a guest gave, if it is one: a guest must not choose where on this machine its
    files go."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise UsageFault(f"the guest names a file {name!r}, which is no name")
    return name


@contextmanager
def _opened(local: Path) -> Iterator[BinaryIO]:
    try:
        file = local.open("rb")
    except OSError as error:
        raise UsageFault(f"{local} cannot be read: {error.strerror}") from error
    with file:
        yield file


@contextmanager
def _written(local: Path, mode: int) -> Iterator[BinaryIO]:
    """A file that takes its place when the block ends well; what is no file is written to."""
    try:
        if local.exists() and not local.is_file():
            with local.open("wb") as device:
                yield device
            return
        descriptor, beside = tempfile.mkstemp(dir=local.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                os.fchmod(file.fileno(), mode & ~_umask())
            Path(beside).replace(local)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageFault(f"{local} cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(PIECE_BYTES):
        yield block


def _counted(pieces: Iterable[bytes], progress: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        progress(len(piece))


@contextmanager
def _shown(name: str, size_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, for a file that takes its time."""
    if size_bytes < LARGE_BYTES or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=size_bytes)
        yield lambda count: bar.advance(task, count)
