"""The tables of tokens, images, hosts, VMs and volumes.

Of what the manager brings about, desired and observed state stand side by side in each row.
"""

from datetime import datetime
from typing import Literal

from pydantic import JsonValue
from sqlalchemy import (
    BigInteger,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    delete,
    event,
    false,
    insert,
    inspect,
    text,
)
from sqlalchemy.orm import Mapped, Mapper, mapped_column

from nexus.api.common import Engine, Progress
from nexus.api.devices import ROOT_DRIVE, Balloon, DriveLimits
from nexus.api.endings import LastExit, RestartPolicy
from nexus.api.hosts import Capacity, HostNetwork, HostState
from nexus.api.images import BuildState, ImageBuildOptions, ImageFormat, ImageKind, ImageRecipe
from nexus.api.origins import Identity
from nexus.api.quotas import Quota
from nexus.api.usage import Measured
from nexus.api.vms import VmError, VmState
from nexus.manager.db.base import Base, Leased
from nexus.manager.db.columns import (
    StoredDrive,
    StoredImage,
    StoredNic,
    StoredOrigin,
    Typed,
    UtcDateTime,
)

WantedPower = Literal["running", "paused", "stopped", "deleted"]
RoleName = Literal["viewer", "operator", "admin", "agent"]


class TokenRow(Base):
    """An API token: found by ``lookup_id``, proven by the Argon2id hash of its secret."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    name: Mapped[str] = mapped_column(String(128))
    lookup_id: Mapped[str] = mapped_column(String(32), unique=True)
    secret_hash: Mapped[str] = mapped_column(String(256))
    role: Mapped[RoleName] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ImageRow(Base):
    """A named image; its content lies in the store under ``sha256``."""

    __tablename__ = "images"
    __table_args__ = (UniqueConstraint("project", "kind", "name"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    kind: Mapped[ImageKind] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(128))
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    source: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ImageBuildRow(Leased, Base):
    """A build of images that runs in the background."""

    __tablename__ = "image_builds"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    recipe: Mapped[ImageRecipe] = mapped_column(String(32))
    options: Mapped[ImageBuildOptions] = mapped_column(
        Typed(ImageBuildOptions), default=ImageBuildOptions
    )
    state: Mapped[BuildState] = mapped_column(String(16), index=True)
    progress: Mapped[float] = mapped_column(Float, default=0.0)
    step: Mapped[str] = mapped_column(Text, default="")
    error: Mapped[str | None] = mapped_column(Text)
    images: Mapped[list[str]] = mapped_column(Typed(list[str]))
    actor: Mapped[str] = mapped_column(String(128))
    request_id: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ImageUploadRow(Base):
    """An upload in the making; its bytes, and so how far it is, lie in a file named by its id."""

    __tablename__ = "image_uploads"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    kind: Mapped[ImageKind] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(128))
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    format: Mapped[ImageFormat | None] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class HostRow(Base):
    """A machine with an agent, as it last described itself."""

    __tablename__ = "hosts"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    agent_url: Mapped[str] = mapped_column(Text)
    state: Mapped[HostState] = mapped_column(String(16))
    engine: Mapped[Engine] = mapped_column(String(16))
    engine_reason: Mapped[str] = mapped_column(Text)
    engine_version: Mapped[str] = mapped_column(Text)
    network: Mapped[HostNetwork] = mapped_column(Typed(HostNetwork))
    networks: Mapped[list[str]] = mapped_column(Typed(list[str]), default=list)
    """The subnets it has an address in or a route to, without those of Nexus' networks."""
    capacity: Mapped[Capacity] = mapped_column(Typed(Capacity))
    run_dir: Mapped[str] = mapped_column(Text)
    agent_version: Mapped[str] = mapped_column(Text)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class HostUseRow(Base):
    """What things take on a host, as it said last. Apart from its row, which is read often."""

    __tablename__ = "host_use"

    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"), primary_key=True)
    use: Mapped[Measured] = mapped_column(Typed(Measured))
    measured_at: Mapped[datetime] = mapped_column(UtcDateTime)


class VmRow(Leased, Base):
    """A VM: what it is, what is wanted of it, and what was last seen of it."""

    __tablename__ = "vms"
    __table_args__ = (
        Index(
            "uq_vms_project_name",
            "project",
            "name",
            unique=True,
            sqlite_where=text("power <> 'deleted'"),
            postgresql_where=text("power <> 'deleted'"),
        ),
        Index(
            "ix_vms_unsettled",
            "next_attempt_at",
            sqlite_where=text("unsettled"),
            postgresql_where=text("unsettled"),
        ),
        Index("ix_vms_template", "template_id"),
        Index(
            "ix_vms_pool",
            "pool_id",
            sqlite_where=text("pool_id IS NOT NULL"),
            postgresql_where=text("pool_id IS NOT NULL"),
        ),
        Index(
            "ix_vms_expires",
            "expires_at",
            sqlite_where=text("power <> 'deleted' AND expires_at IS NOT NULL"),
            postgresql_where=text("power <> 'deleted' AND expires_at IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    name: Mapped[str] = mapped_column(String(63))
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"), index=True)
    engine: Mapped[Engine] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)

    vcpu: Mapped[int] = mapped_column(Integer)
    mem_mib: Mapped[int] = mapped_column(Integer)
    kernel: Mapped[StoredImage] = mapped_column(Typed(StoredImage))
    initrd: Mapped[StoredImage | None] = mapped_column(Typed(StoredImage))
    rootfs: Mapped[StoredImage | None] = mapped_column(Typed(StoredImage))
    kernel_args: Mapped[str | None] = mapped_column(Text)
    rootfs_size_mib: Mapped[int | None] = mapped_column(Integer)
    rootfs_limits: Mapped[DriveLimits | None] = mapped_column(Typed(DriveLimits))
    root_boot: Mapped[int | None] = mapped_column(Integer)
    """The boot before which the root disk was made anew, or is to be."""
    drives: Mapped[list[StoredDrive]] = mapped_column(
        Typed(list[StoredDrive]), default=list, server_default="[]"
    )
    """Those beside the root disk."""
    disk_mib: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """What its own disks were promised: root and drives without volumes. Follows them by itself."""
    nics: Mapped[list[StoredNic]] = mapped_column(Typed(list[StoredNic]))
    balloon: Mapped[Balloon | None] = mapped_column(Typed(Balloon))
    tags: Mapped[dict[str, str]] = mapped_column(Typed(dict[str, str]))
    user_data: Mapped[str | None] = mapped_column(Text)
    vendor_data: Mapped[str | None] = mapped_column(Text)
    config_drive: Mapped[bool] = mapped_column(default=False, server_default=false())
    ssh_keys: Mapped[list[str]] = mapped_column(Typed(list[str]))

    restart_policy: Mapped[RestartPolicy] = mapped_column(
        String(16), default="never", server_default="never"
    )
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When it is to be deleted."""

    template_id: Mapped[str | None] = mapped_column(String(36))
    """The template that it comes from. No key: the VM remembers it when it is gone."""
    template_name: Mapped[str | None] = mapped_column(String(63))
    template_version: Mapped[int | None] = mapped_column(Integer)
    template_overrides: Mapped[dict[str, JsonValue] | None] = mapped_column(
        Typed(dict[str, JsonValue])
    )
    """The fields of the spec that were given when it was made."""
    pool_id: Mapped[str | None] = mapped_column(String(36))
    """The prebooted template in whose pool it waits until somebody wants a VM."""

    power: Mapped[WantedPower] = mapped_column(String(16))
    boot: Mapped[int] = mapped_column(Integer)
    generation: Mapped[int] = mapped_column(Integer)
    stop_timeout_s: Mapped[float] = mapped_column(Float, default=10.0)
    wanted_by: Mapped[str] = mapped_column(String(128))
    """Whose request made what is wanted now."""
    wanted_in: Mapped[str | None] = mapped_column(String(128))
    """The request id of that request."""

    unsettled: Mapped[bool] = mapped_column(default=True)
    """Whether the agent still has to be told, or asked, about this generation."""
    settled_generation: Mapped[int] = mapped_column(Integer, default=0)
    """The last generation that came to its end on the host, in the wanted state or in error."""
    state: Mapped[VmState] = mapped_column(String(16), index=True)
    error: Mapped[VmError | None] = mapped_column(Typed(VmError))
    pid: Mapped[int | None] = mapped_column(Integer)
    socket: Mapped[str | None] = mapped_column(Text)
    configured_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    observed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When the agent saw what the observed columns say."""
    progress: Mapped[Progress | None] = mapped_column(Typed(Progress))
    """Of what its host fetches for it."""
    restarts: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    restart_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_exit: Mapped[LastExit | None] = mapped_column(Typed(LastExit))
    devices_error: Mapped[VmError | None] = mapped_column(Typed(VmError))
    """Why the VMM that runs did not take what is wanted of its devices."""

    track_dirty_pages: Mapped[bool] = mapped_column(default=False, server_default=false())
    origin_id: Mapped[str | None] = mapped_column(String(36), index=True)
    """The snapshot that boot ``origin_boot`` is loaded from; it may be gone since."""
    origin_name: Mapped[str | None] = mapped_column(String(63))
    origin_boot: Mapped[int | None] = mapped_column(Integer)
    identity: Mapped[Identity | None] = mapped_column(Typed(Identity))
    """Whether the guest of a loaded VM has taken its own name, addresses and entropy."""

    @property
    def origin(self) -> StoredOrigin | None:
        if self.origin_id is None or self.origin_name is None or self.origin_boot is None:
            return None
        return StoredOrigin(id=self.origin_id, name=self.origin_name, boot=self.origin_boot)

    @property
    def root(self) -> StoredDrive | None:
        """The root disk as one of the VM's drives."""
        if self.rootfs is None:
            return None
        return StoredDrive(
            name=ROOT_DRIVE,
            size_mib=self.rootfs_size_mib,
            image=self.rootfs,
            read_only=False,
            limits=self.rootfs_limits,
        )


class VmTagRow(Base):
    """One tag of a VM, for looking VMs up by their tags. Follows ``VmRow.tags`` by itself."""

    __tablename__ = "vm_tags"
    __table_args__ = (Index("ix_vm_tags_lookup", "project", "key", "value", "vm_id"),)

    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))
    project: Mapped[str] = mapped_column(String(63))


@event.listens_for(VmRow, "after_insert")
@event.listens_for(VmRow, "after_update")
def _index_tags(mapper: Mapper[VmRow], connection: Connection, row: VmRow) -> None:
    """Writes the VM's tags as rows, in the flush that writes the VM: the two never differ."""
    changed = inspect(row).attrs.tags.history
    if not changed.has_changes():
        return
    if changed.deleted and changed.deleted[0]:
        connection.execute(delete(VmTagRow).where(VmTagRow.vm_id == row.id))
    tags = [
        {"vm_id": row.id, "key": key, "value": value, "project": row.project}
        for key, value in row.tags.items()
    ]
    if tags:
        connection.execute(insert(VmTagRow), tags)


@event.listens_for(VmRow, "before_insert")
@event.listens_for(VmRow, "before_update")
def _sum_disks(mapper: Mapper[VmRow], connection: Connection, row: VmRow) -> None:
    """Keeps the sum that quotas and usage are counted by, whoever changes the disks."""
    drives = [*row.drives, row.root] if row.root is not None else row.drives
    disk_mib = sum(drive.own_mib for drive in drives or ())
    if row.disk_mib != disk_mib:
        row.disk_mib = disk_mib


class VolumeRow(Base):
    """A disk that outlives its VMs. ``vm_id`` decides whose it is; it is free when that row goes,
    or when that VM has let go of it.

    Its file on the host is made when the first VM with it is.
    """

    __tablename__ = "volumes"
    __table_args__ = (UniqueConstraint("project", "name"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    name: Mapped[str] = mapped_column(String(63))
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"))
    size_mib: Mapped[int] = mapped_column(Integer)
    image: Mapped[StoredImage | None] = mapped_column(Typed(StoredImage))
    """What its file begins as."""
    source_id: Mapped[str | None] = mapped_column(String(36))
    """The volume that it is a copy of, until the copy is whole."""
    vm_id: Mapped[str | None] = mapped_column(ForeignKey("vms.id", ondelete="SET NULL"), index=True)
    leaving: Mapped[int | None] = mapped_column(Integer)
    """It was detached: once the VM's host has settled this generation, it is free."""
    deleting: Mapped[bool] = mapped_column(default=False)
    """Its file goes, or is gone already: no VM gets it any more."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class QuotaRow(Base):
    """What a project may have. Whoever makes something for the project locks the row first, so
    that two requests that would exceed it together do not both pass."""

    __tablename__ = "project_quotas"

    project: Mapped[str] = mapped_column(String(63), primary_key=True)
    limits: Mapped[Quota] = mapped_column(Typed(Quota))
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
