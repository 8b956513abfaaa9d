"""Snapshot files.

The memory file is the guest's memory, byte for byte, sparse where it was never touched. The state
file is a header of ours, the machine's configuration as JSON, and QEMU's stream of device states.
"""

import os
import struct
import zlib

import msgspec

from nexus.qemu.faults import Fault, os_error
from nexus.vmm.types import (
    Balloon,
    Drive,
    EntropyDevice,
    MachineConfiguration,
    NetworkInterface,
    Vsock,
)

FORMAT_VERSION = "v1.0.0"
_MAGIC = b"NXQSNAP1"
# magic, JSON length, JSON crc32, stream length, stream crc32
_HEADER = struct.Struct("<8sIIQI")
_CREATE = "Create snapshot error: "
LOAD = "Load snapshot error: Failed to restore from snapshot: "
_STATE = f"{LOAD}Failed to get snapshot state from file: "
_MEMORY = f"{LOAD}Failed to load guest memory: Error creating guest memory from file: "


class SavedNic(msgspec.Struct, frozen=True):
    """A NIC and the address the guest knows it by."""

    config: NetworkInterface
    mac: str


class SavedMachine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a snapshot restores into; QEMU's stream fits only the same machine and QEMU."""

    qemu: str
    accelerator: str
    machine: MachineConfiguration
    drives: list[Drive]
    nics: list[SavedNic]
    balloon: Balloon | None
    entropy: EntropyDevice | None
    vsock: Vsock | None = None
    guest_port_open: bool = False
    """Whether the guest's agent was there."""


def write_state(path: str, machine: SavedMachine, stream: bytes) -> None:
    """Writes the state file; raises Fault."""
    body = msgspec.json.encode(machine)
    header = _HEADER.pack(_MAGIC, len(body), zlib.crc32(body), len(stream), zlib.crc32(stream))
    fd = _create(path, "snapshot")
    try:
        for part in (header, body, stream):
            _write_all(fd, part)
    except OSError as error:
        raise Fault(f"{_CREATE}Cannot write the snapshot file: {os_error(error)}") from error
    finally:
        os.close(fd)


def write_memory(path: str, memory_fd: int, size_bytes: int) -> None:
    """Writes the memory file from the running machine's; raises Fault."""
    fd = _create(path, "memory")
    try:
        copy_sparse(memory_fd, fd, size_bytes)
    except OSError as error:
        raise Fault(f"{_CREATE}Cannot write the memory file: {os_error(error)}") from error
    finally:
        os.close(fd)


def read_state(path: str) -> tuple[SavedMachine, bytes]:
    """The machine and QEMU's stream out of a state file; raises Fault if it is none or damaged."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib is not imported otherwise
            data = file.read()
    except (OSError, ValueError) as error:
        text = os_error(error) if isinstance(error, OSError) else str(error)
        raise Fault(f"{_STATE}Failed to open snapshot file: {text}", fatal=True) from error
    damaged = f"{_STATE}Failed to load snapshot state from file: "
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise Fault(f"{damaged}It is not a snapshot of nexus-qemu.", fatal=True)
    _, body_length, body_crc, stream_length, stream_crc = _HEADER.unpack_from(data)
    body = data[_HEADER.size : _HEADER.size + body_length]
    stream = data[_HEADER.size + body_length :]
    whole = len(stream) == stream_length and zlib.crc32(body) == body_crc
    if not whole or zlib.crc32(stream) != stream_crc:
        raise Fault(f"{damaged}CRC64 validation failed.", fatal=True)
    try:
        return msgspec.json.decode(body, type=SavedMachine), stream
    except msgspec.DecodeError as error:
        raise Fault(f"{damaged}{error}", fatal=True) from error


def read_memory(path: str, memory_fd: int, size_bytes: int) -> None:
    """Fills a new machine's memory from a memory file; raises Fault."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        text = os_error(error) if isinstance(error, OSError) else str(error)
        raise Fault(f"{_MEMORY}Failed to load guest memory: {text}", fatal=True) from error
    try:
        found = os.fstat(fd).st_size
        if found != size_bytes:
            raise Fault(
                f"{_MEMORY}Failed to restore guest memory: The memory file has {found} bytes, the "
                f"snapshot's machine {size_bytes}.",
                fatal=True,
            )
        copy_sparse(fd, memory_fd, size_bytes)
    except OSError as error:
        raise Fault(f"{_MEMORY}Failed to load: {os_error(error)}", fatal=True) from error
    finally:
        os.close(fd)


def copy_sparse(source: int, target: int, size_bytes: int) -> None:
    """Makes ``target`` a copy with the same holes, inside the kernel; raises OSError."""
    os.ftruncate(target, 0)
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


def _create(path: str, what: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:
        text = os_error(error) if isinstance(error, OSError) else str(error)
        raise Fault(f"{_CREATE}Cannot perform open on the {what} backing file: {text}") from error


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
