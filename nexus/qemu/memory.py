"""A machine's memory: files of its own and of snapshots, and what is written into a snapshot.

A machine that boots shares a file in memory with QEMU. One that is loaded maps the snapshot's file
privately: what it does not change is shared with all other machines that were loaded from it, what
it changes is its own. A snapshot of such a machine is the old file with these pages laid over it.
"""

import fcntl
import os
from array import array
from collections.abc import Iterator

import msgspec

from nexus.qemu.faults import Fault, os_error
from nexus.qemu.snapshot import LOAD

_CREATE = "Create snapshot error: "
_LOAD = f"{LOAD}Failed to load guest memory: Error creating guest memory from file: "
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CHUNK = 1 << 20
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_ENTRY = 8  # bytes of /proc/PID/pagemap a page
_ENTRIES = 1 << 16
# Kernel docs: admin-guide/mm/pagemap. A page of a file, or one that the kernel holds elsewhere.
_FILE, _THERE = 1 << 61, 1 << 63 | 1 << 62


class Memory(msgspec.Struct, frozen=True):
    """``fd`` is the file under it; ``private``: QEMU maps it so that changes do not reach it."""

    fd: int
    size_bytes: int
    private: bool

    def close(self) -> None:
        os.close(self.fd)

    def save(self, path: str, qemu_pid: int, *, changes_only: bool) -> None:
        """Writes the memory file of a machine that is stopped; raises Fault.

        With ``changes_only`` it may have holes where nothing was changed since the machine's start
        or load.
        """
        fd = _create(path, self.fd)
        try:
            if changes_only and self.private:
                os.ftruncate(fd, self.size_bytes)
            else:
                _clone(self.fd, fd, self.size_bytes)
            if self.private:
                self._save_changes(fd, qemu_pid)
        except OSError as error:
            raise Fault(f"{_CREATE}Cannot write the memory file: {os_error(error)}") from error
        finally:
            os.close(fd)

    def _save_changes(self, target: int, qemu_pid: int) -> None:
        """Writes the pages of which QEMU has its own copy."""
        process = f"/proc/{qemu_pid}"
        mappings = _mappings(process, os.fstat(self.fd).st_ino, self.size_bytes)
        memory = os.open(f"{process}/mem", os.O_RDONLY | os.O_CLOEXEC)
        pagemap = os.open(f"{process}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for address, offset, length in mappings:
                for at, size in _changed(pagemap, address, length):
                    _copy(memory, address + at, target, offset + at, size)
        finally:
            os.close(memory)
            os.close(pagemap)


def fresh(size_bytes: int, *, huge: bool) -> Memory:
    """Memory that was never touched; raises OSError."""
    flags = os.MFD_CLOEXEC
    if huge:
        flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
    fd = os.memfd_create("nexus-memory", flags)
    try:
        os.ftruncate(fd, size_bytes)
    except OSError:
        os.close(fd)
        raise
    return Memory(fd, size_bytes, private=False)


def of_snapshot(path: str, size_bytes: int, *, huge: bool, discards: bool) -> Memory:
    """Memory as a snapshot's file has it; raises Fault.

    The file must stay as it is for as long as the machine runs. QEMU (until 8.2) opens it for
    writing, although nothing is written to a private mapping, and takes what a balloon *discards*
    out of the file itself: a machine with a balloon gets a copy, and so does a QEMU that may not
    open the file that way. Memory in huge pages cannot come from a file, as with Firecracker.
    """
    if huge:
        raise Fault(
            f"{_LOAD}Cannot restore hugetlbfs backed snapshot by mapping the memory file. Please "
            "use uffd.",
            fatal=True,
        )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        text = os_error(error) if isinstance(error, OSError) else str(error)
        raise Fault(f"{_LOAD}Failed to load guest memory: {text}", fatal=True) from error
    try:
        found = os.fstat(fd).st_size
        if found != size_bytes:
            raise Fault(
                f"{_LOAD}Failed to restore guest memory: The memory file has {found} bytes, the "
                f"snapshot's machine {size_bytes}.",
                fatal=True,
            )
        if not discards and os.access(path, os.W_OK, effective_ids=True):
            return Memory(os.dup(fd), size_bytes, private=True)
        memory = fresh(size_bytes, huge=False)
        _clone(fd, memory.fd, size_bytes)
        return memory
    except OSError as error:
        raise Fault(f"{_LOAD}Failed to load: {os_error(error)}", fatal=True) from error
    finally:
        os.close(fd)


# -- pages of another process --------------------------------------------------------------------


def _mappings(process: str, inode: int, size_bytes: int) -> list[tuple[int, int, int]]:
    """Where a process maps a file of this size privately: address, offset in the file, length.

    The kernel may have cut the mapping into parts. Its device is not that of stat(2) on every file
    system, and another device's file may have the same number: what makes up the size is it.
    """
    found: dict[str, list[tuple[int, int, int]]] = {}
    with open(f"{process}/maps") as maps:  # noqa: PTH123 - pathlib is not imported otherwise
        for line in maps:
            addresses, access, offset, device, number, *_ = line.split()
            if int(number) == inode and access == "rw-p":
                start, end = (int(text, 16) for text in addresses.split("-"))
                found.setdefault(device, []).append((start, int(offset, 16), end - start))
    for parts in found.values():
        if sum(length for _, _, length in parts) == size_bytes:
            return parts
    raise Fault(f"{_CREATE}QEMU does not map all of the machine's memory.")


def _changed(pagemap: int, address: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of a private mapping that are no longer its file's: offset and length in bytes."""
    begun: int | None = None
    pages = length // _PAGE
    for first in range(0, pages, _ENTRIES):
        count = min(_ENTRIES, pages - first)
        entries = array("Q")
        entries.frombytes(os.pread(pagemap, count * _ENTRY, (address // _PAGE + first) * _ENTRY))
        for index, entry in enumerate(entries, first):
            if entry & _THERE and not entry & _FILE:
                begun = index if begun is None else begun
            elif begun is not None:
                yield begun * _PAGE, (index - begun) * _PAGE
                begun = None
    if begun is not None:
        yield begun * _PAGE, (pages - begun) * _PAGE


def _copy(source: int, source_at: int, target: int, target_at: int, size: int) -> None:
    buffer = memoryview(bytearray(min(size, _CHUNK)))
    while size:
        got = os.preadv(source, [buffer[:size]], source_at)
        if got == 0:
            raise OSError(5, "Input/output error")
        put = os.pwrite(target, buffer[:got], target_at)
        source_at, target_at, size = source_at + put, target_at + put, size - put


# -- files ---------------------------------------------------------------------------------------


def _create(path: str, present: int) -> int:
    """Opens an empty file. The one that the machine's memory comes from is not emptied: it gives
    its name to another one."""
    try:
        if _is_same(path, present):
            os.unlink(path)  # noqa: PTH108 - pathlib is not imported otherwise
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:
        text = os_error(error) if isinstance(error, OSError) else str(error)
        raise Fault(f"{_CREATE}Cannot perform open on the memory backing file: {text}") from error


def _is_same(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))  # noqa: PTH116
    except OSError:
        return False


def _clone(source: int, target: int, size_bytes: int) -> None:
    """Makes ``target`` a copy with the same holes, of shared blocks where the file system can, else
    inside the kernel; raises OSError."""
    os.ftruncate(target, 0)
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError:
        os.ftruncate(target, size_bytes)
    at = 0
    while at < size_bytes:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: nothing but a hole is left
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            sent = os.sendfile(target, source, at, end - at)
            if sent == 0:
                raise OSError(5, "Input/output error")
            at += sent
