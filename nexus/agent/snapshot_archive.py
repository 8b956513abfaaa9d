"""A snapshot on its way to another host: as a stream of its files, and from such a stream.

What comes in is hostile until it is proven: it lands under fixed names in a folder of its own, is
held to the sizes and checksums that it announced, and is on the shelf when all of it is right, or
not at all.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anyio import to_thread
from pydantic import ValidationError

from nexus.agent import snapshot_files
from nexus.agent.errors import host_full
from nexus.agent.layout import CONFIG_DRIVE, ROOTFS, SnapshotPaths, drive_file, is_disk
from nexus.agent.snapshots import Shelf
from nexus.agent.vmm_config import needs_config_drive
from nexus.api.archives import (
    END,
    META,
    PIECE,
    ArchiveReader,
    BadArchive,
    entry,
    header,
    padding,
    taken,
)
from nexus.api.errors import Conflict
from nexus.api.snapshots import HostSnapshot, SnapshotFile

MIB = 1 << 20
MOST_STATE = 1 << 30
"""A VMM's state is some 100 KiB; QEMU's grows with its devices."""
ZEROS = bytes(64 << 10)
"""Zeros of this size become holes."""


@dataclass(frozen=True)
class Outgoing:
    """A snapshot as it is sent. Its files are open, so that it is sent whole even when it is
    deleted meanwhile; ``close`` closes them."""

    size_bytes: int
    content: AsyncIterator[bytes]
    files: ExitStack

    async def close(self) -> None:
        self.files.close()


async def outgoing(shelf: Shelf, snapshot_id: str) -> Outgoing:
    """The snapshot with all of its memory: a diff is made whole first.

    Raises NotFound, HostFull.
    """
    kept = await shelf.whole(snapshot_id)
    paths = shelf.paths(snapshot_id)
    meta = kept.model_copy(update={"kind": "full", "parent_id": None})
    text = entry(META, meta.model_dump_json().encode())
    with ExitStack() as opening:
        opened = [
            (file, opening.enter_context(_place(paths, file.name).open("rb")))
            for file in meta.files
        ]
        files = opening.pop_all()

    async def content() -> AsyncIterator[bytes]:
        yield text
        for file, handle in opened:
            yield header(file.name, file.size_bytes)
            left = file.size_bytes
            while left:
                piece = await to_thread.run_sync(handle.read, min(left, PIECE))
                if not piece:
                    raise Conflict(f"{file.name} of the snapshot {snapshot_id} is cut short")
                left -= len(piece)
                yield piece
            yield padding(file.size_bytes)
        yield END

    size = len(text) + sum(taken(file.size_bytes) for file in meta.files) + len(END)
    return Outgoing(size, content(), files)


async def incoming(shelf: Shelf, snapshot_id: str, body: AsyncIterator[bytes]) -> HostSnapshot:
    """Puts what comes on the shelf under this id, whole and verified, or nothing of it.

    Raises BadArchive, Conflict, HostFull, or what ``body`` raises.
    """
    if shelf.find(snapshot_id) is not None:
        raise Conflict(
            f"this host has the snapshot {snapshot_id} already", suggestion="nexus snapshot ls"
        )
    reader = ArchiveReader(body)
    meta = _announced(await reader.text(META), snapshot_id)
    with shelf.making(snapshot_id) as paths:
        room = os.statvfs(paths.dir)
        _check(meta, most=room.f_blocks * room.f_frsize)
        for file in meta.files:
            if await reader.file(file.name) != file.size_bytes:
                raise BadArchive(f"{file.name} is not as large as it was announced")
            await _receive(reader, _place(paths, file.name), file)
        await reader.end()
        return await shelf.keep(snapshot_id, partial(_sealed, meta, paths))


def _announced(text: bytes, snapshot_id: str) -> HostSnapshot:
    try:
        found = HostSnapshot.model_validate_json(text)
    except ValidationError as error:
        raise BadArchive(f"{META} is not understood: {error.errors()[0]['msg']}") from error
    return found.model_copy(update={"id": snapshot_id})


def _check(meta: HostSnapshot, *, most: int) -> None:
    """Raises BadArchive unless it lists what such a machine's snapshot has, and nothing else."""
    machine = meta.machine
    if meta.kind != "full" or meta.needs_parent or meta.parent_id is not None:
        raise BadArchive("it is a diff")
    if (meta.vcpu, meta.mem_mib) != (machine.vcpu, machine.mem_mib):
        raise BadArchive("its machine is another one than its own")
    if any(drive.volume is not None for drive in machine.drives):
        raise BadArchive("one of its drives is a volume")
    disks = [drive_file(drive.name) for drive in machine.drives]
    if machine.rootfs is not None:
        disks.append(ROOTFS)
    if needs_config_drive(machine):
        disks.append(CONFIG_DRIVE)
    names = [file.name for file in meta.files]
    if sorted(names) != sorted(["mem", "state", *disks]):
        raise BadArchive(f"it lists {', '.join(names)[:300]}")
    sizes = {file.name: file.size_bytes for file in meta.files}
    if sizes["mem"] != machine.mem_mib * MIB or not 0 < sizes["state"] <= MOST_STATE:
        raise BadArchive("its memory or state is not as large as such a machine's")
    if sum(sizes.values()) > most:
        raise BadArchive(f"its files have {sum(sizes.values())} bytes, more than the host's disk")


def _place(paths: SnapshotPaths, name: str) -> Path:
    if is_disk(name):
        return paths.disk(name)
    return paths.memory if name == "mem" else paths.state


async def _receive(reader: ArchiveReader, place: Path, file: SnapshotFile) -> None:
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(place, flags, 0o600)
        try:
            at = 0
            async for batch in _batches(reader.content(file.size_bytes)):
                await to_thread.run_sync(_write, descriptor, at, batch, digest)
                at += len(batch)
            os.ftruncate(descriptor, file.size_bytes)
            os.fchmod(descriptor, snapshot_files.SEALED_MODE)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise host_full("the snapshot cannot be written", error, place.parent) from error
    if digest.hexdigest() != file.sha256:
        raise BadArchive(f"the sha256 of {file.name} is {digest.hexdigest()}, not {file.sha256}")


async def _batches(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pieces as they come from a socket, put together: a thread is no cheaper for a small one."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        if len(held) >= PIECE:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _write(descriptor: int, at: int, data: bytes, digest: "hashlib._Hash") -> None:
    digest.update(data)
    for first, piece in _pieces(data):
        if piece != ZEROS[: len(piece)]:
            written = 0
            while written < len(piece):
                written += os.pwrite(descriptor, piece[written:], at + first + written)


def _pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    for first in range(0, len(data), len(ZEROS)):
        yield first, data[first : first + len(ZEROS)]


def _sealed(meta: HostSnapshot, paths: SnapshotPaths) -> HostSnapshot:
    """Durable, and described as the files are here. Raises OSError."""
    files = [
        snapshot_files.seal(_place(paths, file.name), sha256=file.sha256) for file in meta.files
    ]
    return meta.model_copy(
        update={
            "files": files,
            "size_bytes": sum(file.size_bytes for file in files),
            "disk_bytes": sum(file.disk_bytes for file in files),
        }
    )
