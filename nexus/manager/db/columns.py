"""Column types and the values that rows hold beyond plain ones."""

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import JSON, DateTime, Dialect
from sqlalchemy.types import TypeDecorator

from nexus.api.common import Wire
from nexus.api.devices import ROOT_DRIVE, Balloon, DriveLimits, NicCreate, NicLimits
from nexus.api.endings import RestartPolicy
from nexus.api.networks import DEFAULT_NETWORK
from nexus.api.vms import VmImage, VmVolume

MIB = 1 << 20
REMEMBERED = 1024
"""So many stored values are kept for each column."""


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC times on every database; SQLite itself keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Typed(TypeDecorator[Any]):
    """A JSON column that holds values of one Python type, checked on the way in and out."""

    impl = JSON(none_as_null=True)
    cache_ok = True
    """Statements are compiled once for each ``kind``."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self._adapter: TypeAdapter[Any] = TypeAdapter(kind)
        self._frozen = isinstance(kind, type) and issubclass(kind, Wire)

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else self._adapter.dump_python(value, mode="json")

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """SQLite hands over text, which is read in one go; values that cannot change are read once
        for all rows, since many VMs boot the same images. asyncpg hands over what JSON means."""
        if dialect.name != "sqlite":
            return self._checked
        return functools.lru_cache(maxsize=REMEMBERED)(self._read) if self._frozen else self._read

    def _read(self, stored: str | None) -> Any:
        return None if stored is None else self._adapter.validate_json(stored)

    def _checked(self, value: Any) -> Any:
        return None if value is None else self._adapter.validate_python(value)


class StoredImage(VmImage):
    """An image as a VM's row keeps it: also its size, which the agent needs."""

    size_bytes: int


class StoredImages(Wire):
    """The images of a template's version, as its row keeps them."""

    kernel: StoredImage
    initrd: StoredImage | None
    rootfs: StoredImage | None
    drives: dict[str, StoredImage]
    """By the names of the drives that begin as a copy of one."""

    @property
    def every(self) -> list[StoredImage]:
        """All of them, in no order that means anything."""
        found = [self.kernel, self.initrd, self.rootfs, *self.drives.values()]
        return [image for image in found if image is not None]


class StoredNic(Wire):
    """A NIC as a VM's row keeps it."""

    iface: str
    mac: str
    ip: str
    """``10.77.0.5/20``"""
    gateway: str | None
    dns: list[str]
    tap: str = ""
    """Empty until the agent has made it."""
    limits: NicLimits | None = None
    network: str = DEFAULT_NETWORK
    network_id: str = ""
    home: bool = True
    """Whether it is on the host's own network."""


class StoredDrive(Wire):
    """A drive as a VM's row keeps it."""

    name: str
    size_mib: int | None
    """None is as large as its image."""
    image: StoredImage | None
    read_only: bool
    limits: DriveLimits | None
    volume: VmVolume | None = None

    @property
    def own_mib(self) -> int:
        """What it may come to take on the host because of its VM: nothing where it is a volume,
        or content of the store that is only read."""
        if self.volume is not None or (self.image is not None and self.read_only):
            return 0
        of_image = -(-self.image.size_bytes // MIB) if self.image is not None else 0
        return self.size_mib or of_image


class StoredOrigin(Wire):
    """The snapshot that a boot of a VM is loaded from."""

    id: str
    name: str
    """What the snapshot was called then."""
    boot: int
    """The boot that is loaded; later ones begin with the kernel again."""


class Blueprint(Wire):
    """What VMs alike are made of: all but their names, hosts, addresses and deadlines."""

    vcpu: int
    mem_mib: int
    kernel: StoredImage
    initrd: StoredImage | None
    rootfs: StoredImage | None
    kernel_args: str | None
    rootfs_size_mib: int | None
    rootfs_limits: DriveLimits | None
    drives: list[StoredDrive]
    nics: list[NicCreate]
    balloon: Balloon | None
    tags: dict[str, str]
    user_data: str | None
    ssh_keys: list[str]
    restart_policy: RestartPolicy
    track_dirty_pages: bool = False
    vendor_data: str | None = None
    config_drive: bool = False

    @property
    def root(self) -> StoredDrive | None:
        """The root disk as one of the drives."""
        if self.rootfs is None:
            return None
        return StoredDrive(
            name=ROOT_DRIVE,
            size_mib=self.rootfs_size_mib,
            image=self.rootfs,
            read_only=False,
            limits=self.rootfs_limits,
        )

    @property
    def every_drive(self) -> list[StoredDrive]:
        """The root disk as well, if there is one."""
        return [*self.drives, self.root] if self.root is not None else self.drives

    @property
    def snapshot_mib(self) -> int:
        """What a snapshot of such a VM may come to take: its memory and its disks."""
        return self.mem_mib + sum(drive.own_mib for drive in self.every_drive)

    @property
    def images(self) -> list[StoredImage]:
        """All that a boot from the kernel needs, and what its drives began as."""
        found = [self.kernel, self.initrd, self.rootfs, *(each.image for each in self.drives)]
        return [image for image in found if image is not None]
