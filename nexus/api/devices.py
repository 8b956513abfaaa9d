"""Drives, NICs and the balloon of a VM, and their limits, as users ask for them."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from nexus.api.common import ImageRef, VolumeRef, Wire
from nexus.api.networks import Address, NetworkRef

ROOT_DRIVE = "rootfs"
"""What the root disk is called among a VM's drives."""
RESERVED_DRIVES = frozenset({ROOT_DRIVE, "config"})
MAX_DRIVES = 8
MAX_NICS = 8
MAX_DEVICES = 14
"""Drives, NICs and the balloon together. Firecracker has 19 interrupt lines for devices; the root
disk, the config drive, the vsock device and its own clock and generation devices take the rest."""
MIN_GUEST_MIB = 16
"""What a balloon must leave to its guest."""

DriveId = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]{0,15}$")]
"""A drive's name; also its id at the VMM and its serial number in the guest."""
Iface = Annotated[str, StringConstraints(pattern=r"^eth[0-9]$")]
DiskMib = Annotated[int, Field(strict=True, ge=1, le=16 << 20)]

_MibPerSecond = Annotated[float, Field(strict=True, ge=0.1, le=100_000, allow_inf_nan=False)]
_MbitPerSecond = Annotated[float, Field(strict=True, ge=0.1, le=400_000, allow_inf_nan=False)]
_Iops = Annotated[int, Field(strict=True, ge=1, le=10_000_000)]
_BurstMib = Annotated[int, Field(strict=True, ge=1, le=1 << 20)]


class DriveLimits(Wire):
    """Reads and writes together. What is null is not limited.

    A burst is what may pass at once after a quiet time.
    """

    bandwidth_mib_s: _MibPerSecond | None = None
    bandwidth_burst_mib: _BurstMib | None = None
    iops: _Iops | None = None
    iops_burst: _Iops | None = None


class NicLimits(Wire):
    """In megabits (1,000,000 bits) a second, seen from the guest: ``rx`` is what it receives.
    What is null is not limited."""

    rx_mbit_s: _MbitPerSecond | None = None
    tx_mbit_s: _MbitPerSecond | None = None


class DriveCreate(Wire):
    """A drive beside the root disk: empty, or a copy of an image, or both: a copy made larger; or
    a volume, which outlives the VM."""

    name: DriveId
    size_mib: DiskMib | None = None
    image: ImageRef | None = None
    """Id or name of a root file system image."""
    volume: VolumeRef | None = None
    """Id or name of a volume that no other VM has."""
    read_only: Annotated[bool, Field(strict=True)] = False
    limits: DriveLimits | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.name in RESERVED_DRIVES:
            raise ValueError(f"{self.name} is taken by Nexus: choose another name")
        if self.volume is not None:
            if self.size_mib is not None or self.image is not None:
                raise ValueError(f"{self.name} is a volume: omit size_mib and image")
            return self
        if self.size_mib is None and self.image is None:
            raise ValueError(f"{self.name} needs size_mib, an image, or a volume")
        if self.read_only and self.image is None:
            raise ValueError(f"{self.name} would be read-only and empty: give it an image")
        if self.read_only and self.size_mib is not None:
            raise ValueError(f"{self.name} is read-only and as large as its image: omit size_mib")
        return self


class NicCreate(Wire):
    """A NIC on a network. The first is ``eth0``."""

    network: NetworkRef | None = None
    """Name or id; the host's own network when absent."""
    ip: Address | None = None
    """An address of the network that is free; the next one when absent."""
    limits: NicLimits | None = None


class Balloon(Wire):
    """A device that takes memory back from the guest; the host can use that memory."""

    target_mib: Annotated[int, Field(strict=True, ge=0, le=1 << 20)] = 0
    """So much of the VM's memory the guest is to give back."""
    deflate_on_oom: Annotated[bool, Field(strict=True)] = True
    """A guest that runs out of memory may take it from the balloon."""
    stats_interval_s: Annotated[int, Field(strict=True, ge=0, le=3600)] = 5
    """How often the guest reports its memory; 0 is never."""


def _check_not_empty(given: set[str], limits: DriveLimits | NicLimits | None) -> None:
    if not given or (limits is not None and not limits.model_fields_set):
        raise ValueError("nothing is to be changed")


class DriveChange(Wire):
    """What to change of a drive. What is left out stays, also each limit; null is no limit."""

    limits: DriveLimits | None = None
    size_mib: DiskMib | None = None
    """Only larger than it is."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if "size_mib" in self.model_fields_set and self.size_mib is None:
            raise ValueError("size_mib is a size, or left out")
        _check_not_empty(self.model_fields_set, self.limits)
        return self


class NicChange(Wire):
    """What to change of a NIC. A limit that is left out stays; null is no limit."""

    limits: NicLimits | None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        _check_not_empty(self.model_fields_set, self.limits)
        return self


class BalloonChange(Wire):
    target_mib: Annotated[int, Field(strict=True, ge=0, le=1 << 20)]


DeviceWait = Literal["applied"]
"""What ``?wait=`` of a change of devices can wait for."""
