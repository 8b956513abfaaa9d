"""A writer of cpio archives in the "newc" format, as the kernel reads for its initial RAM disk.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
The same entries always give the same bytes: owner root, times zero, numbered in order.
"""

import stat
from dataclasses import dataclass

TRAILER = "TRAILER!!!"
ALIGNMENT = 4


@dataclass(frozen=True)
class Entry:
    """One file of an archive; ``name`` is relative, without a leading slash."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, permissions: int = 0o755) -> Entry:
    """A folder."""
    return Entry(name, stat.S_IFDIR | permissions)


def file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | permissions, data)


def link(name: str, target: str) -> Entry:
    """A symbolic link to ``target``."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(name, stat.S_IFCHR | permissions, device=(major, minor))


def pipe(name: str, permissions: int = 0o600) -> Entry:
    """A named pipe."""
    return Entry(name, stat.S_IFIFO | permissions)


def archive(entries: list[Entry]) -> bytes:
    """The whole archive; folders come before what is in them, as the kernel unpacks in order."""
    out = bytearray()
    for number, entry in enumerate([*entries, Entry(TRAILER, 0)], start=1):
        out += _header(number, entry)
        out += entry.name.encode() + b"\0"
        _pad(out)
        out += entry.data
        _pad(out)
    return bytes(out)


def _header(number: int, entry: Entry) -> bytes:
    is_trailer = entry.name == TRAILER
    fields = (
        0 if is_trailer else number,
        entry.mode,
        0,  # uid
        0,  # gid
        2 if stat.S_ISDIR(entry.mode) else 1,
        0,  # mtime
        len(entry.data),
        0,  # device of the file itself
        0,
        *entry.device,
        len(entry.name.encode()) + 1,
        0,  # checksum, unused in newc
    )
    return b"070701" + b"".join(b"%08X" % field for field in fields)


def _pad(out: bytearray) -> None:
    out += b"\0" * (-len(out) % ALIGNMENT)
