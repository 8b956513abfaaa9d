"""The state file of a snapshot: a header of ours, the machine's configuration as JSON, and QEMU's
stream of device states. (``memory`` has the memory file.)
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

FORMAT_VERSION = "v2.0.0"
_MAGIC = b"NXQSNAP2"
# magic, JSON length, JSON crc32, stream length, stream crc32
_HEADER = struct.Struct("<8sIIQI")
_CREATE = "Create snapshot error: "
LOAD = "Load snapshot error: Failed to restore from snapshot: "
_STATE = f"{LOAD}Failed to get snapshot state from file: "


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
    fd = _create(path)
    try:
        for part in (header, body, stream):
            _write_all(fd, part)
    except OSError as error:
        raise Fault(f"{_CREATE}Cannot write the snapshot file: {os_error(error)}") from error
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
        raise Fault(f"{damaged}It is not a snapshot of this nexus-qemu.", fatal=True)
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


def _create(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:
        text = os_error(error) if isinstance(error, OSError) else str(error)
        raise Fault(f"{_CREATE}Cannot perform open on the snapshot backing file: {text}") from error


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
