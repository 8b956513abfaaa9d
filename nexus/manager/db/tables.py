"""The tables. Desired and observed state stand side by side in each row."""

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue
from sqlalchemy import (
    BigInteger,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
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
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, mapped_column

from nexus.api.common import Engine, Progress
from nexus.api.devices import ROOT_DRIVE, Balloon, DriveLimits
from nexus.api.endings import LastExit, RestartPolicy
from nexus.api.hosts import Capacity, HostNetwork, HostState
from nexus.api.images import (
    BuildState,
    ImageBuildOptions,
    ImageFormat,
    ImageKind,
    ImageRecipe,
)
from nexus.api.networks import NetworkError, NetworkKind, NetworkState, Protocol
from nexus.api.origins import Identity
from nexus.api.quotas import Quota
from nexus.api.snapshots import HostSnapshot, SnapshotKind
from nexus.api.usage import Measured
from nexus.api.vm_snapshots import SnapshotError, SnapshotState
from nexus.api.vms import VmError, VmState
from nexus.manager.db.columns import (
    Blueprint,
    StoredDrive,
    StoredImage,
    StoredNic,
    StoredOrigin,
    Typed,
    UtcDateTime,
)

WantedPower = Literal["running", "paused", "stopped", "deleted"]
RoleName = Literal["viewer", "operator", "admin", "agent"]

_BIG_ID = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """All tables' metadata, with names for constraints that migrations can rely on."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Leased:
    """A row that background work takes with a lease. See docs/pipelines.md."""

    if TYPE_CHECKING:
        id: Mapped[str]

    lease_owner: Mapped[str | None] = mapped_column(String(36))
    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    next_attempt_at: Mapped[datetime] = mapped_column(UtcDateTime)
    attempts: Mapped[int] = mapped_column(Integer, default=0)


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


class NetworkRow(Base):
    """A network. Its hosts make it; ``state`` is what they say of that."""

    __tablename__ = "networks"
    __table_args__ = (UniqueConstraint("project", "name"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    name: Mapped[str] = mapped_column(String(32))
    kind: Mapped[NetworkKind] = mapped_column(String(16))
    host_id: Mapped[str | None] = mapped_column(ForeignKey("hosts.id"), index=True)
    """The host whose own network this is; None for one that every host makes."""
    cidr: Mapped[str] = mapped_column(String(18))
    gateway: Mapped[str | None] = mapped_column(String(15))
    uplink: Mapped[str | None] = mapped_column(String(15))
    isolate_vms: Mapped[bool] = mapped_column(default=False)
    dns: Mapped[list[str] | None] = mapped_column(Typed(list[str]))
    """None for the name servers of the host."""
    dhcp: Mapped[bool] = mapped_column(default=False)
    reserved: Mapped[list[str]] = mapped_column(Typed(list[str]), default=list)
    allow: Mapped[list[str]] = mapped_column(Typed(list[str]), default=list)
    bridge: Mapped[str] = mapped_column(String(15))
    state: Mapped[NetworkState] = mapped_column(String(16))
    error: Mapped[NetworkError | None] = mapped_column(Typed(NetworkError))
    last_address: Mapped[int] = mapped_column(BigInteger, default=0)
    """The address handed out last, as a number: freed addresses rest before they come back."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


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


class SnapshotRow(Leased, Base):
    """A snapshot of a VM. It outlives the VM: everything that clones are made of is in it."""

    __tablename__ = "snapshots"
    __table_args__ = (
        UniqueConstraint("project", "name"),
        Index(
            "uq_snapshots_capturing",
            "vm_id",
            unique=True,
            sqlite_where=text("state = 'requested'"),
            postgresql_where=text("state = 'requested'"),
        ),
        Index("ix_snapshots_vm", "vm_id", "id"),
        Index("ix_snapshots_state", "state", "next_attempt_at"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    name: Mapped[str] = mapped_column(String(63))
    vm_id: Mapped[str | None] = mapped_column(String(36))
    """The VM it was taken of; no foreign key, because that may be gone. None when imported."""
    vm_name: Mapped[str] = mapped_column(String(63))
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"), index=True)
    engine: Mapped[Engine] = mapped_column(String(16))
    kind: Mapped[SnapshotKind] = mapped_column(String(8))
    parent_id: Mapped[str | None] = mapped_column(String(36), index=True)
    """The snapshot that a diff was taken after."""
    needs_parent: Mapped[bool] = mapped_column(default=False)
    """Whether it is only the difference still: hosts merge chains in the background."""
    state: Mapped[SnapshotState] = mapped_column(String(16))
    error: Mapped[SnapshotError | None] = mapped_column(Typed(SnapshotError))
    blueprint: Mapped[Blueprint] = mapped_column(Typed(Blueprint))
    held: Mapped[HostSnapshot | None] = mapped_column(Typed(HostSnapshot))
    """What the host says of it once it is captured."""
    disk_mib: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """What it was promised: its memory, and the disks by the size that guests see."""
    scheduled: Mapped[bool] = mapped_column(default=False)
    """Whether its VM's schedule made it, and may prune it."""
    template_id: Mapped[str | None] = mapped_column(String(36))
    """The template whose prebooted VM it is: Nexus' own, and not shown unless asked for."""
    wanted_by: Mapped[str] = mapped_column(String(128))
    wanted_in: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SnapshotScheduleRow(Base):
    """When snapshots of a VM are taken by themselves, and how many of them are kept."""

    __tablename__ = "snapshot_schedules"

    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    every_s: Mapped[int] = mapped_column(Integer)
    keep: Mapped[int] = mapped_column(Integer)
    next_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    last_error: Mapped[str | None] = mapped_column(Text)
    """Why the last one that was due was not taken."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class PortForwardRow(Base):
    """A port of a host that leads to a VM. The unique constraint decides whose it is."""

    __tablename__ = "port_forwards"
    __table_args__ = (UniqueConstraint("host_id", "protocol", "host_port"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"))
    protocol: Mapped[Protocol] = mapped_column(String(8))
    host_port: Mapped[int] = mapped_column(Integer)
    guest_port: Mapped[int] = mapped_column(Integer)
    iface: Mapped[str] = mapped_column(String(8))
    ip: Mapped[str] = mapped_column(String(15))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class IpAddressRow(Base):
    """An address in use. The unique constraint decides who gets it."""

    __tablename__ = "ip_addresses"
    __table_args__ = (UniqueConstraint("network_id", "address"),)

    id: Mapped[int] = mapped_column(_BIG_ID, primary_key=True, autoincrement=True)
    network_id: Mapped[str] = mapped_column(ForeignKey("networks.id"))
    address: Mapped[int] = mapped_column(BigInteger)
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)


class VmEventRow(Base):
    """One change in a VM's life. Events outlive their VM."""

    __tablename__ = "vm_events"
    __table_args__ = (
        Index("ix_vm_events_vm", "vm_id", "id"),
        Index("ix_vm_events_project", "project", "id"),
        Index("ix_vm_events_name", "project", "vm_name", "id"),
        Index("ix_vm_events_at", "at", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_BIG_ID, primary_key=True, autoincrement=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    vm_id: Mapped[str] = mapped_column(String(36))
    vm_name: Mapped[str] = mapped_column(String(63), server_default="")
    """The VM's name at that time."""
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    state: Mapped[VmState] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(128))
    request_id: Mapped[str | None] = mapped_column(String(128))


class EventHorizonRow(Base):
    """One row: events up to ``pruned_to`` were deleted for their age."""

    __tablename__ = "event_horizon"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    pruned_to: Mapped[int] = mapped_column(BigInteger)


class IdempotencyRow(Base):
    """A request's Idempotency-Key, written in the transaction of what the request changed."""

    __tablename__ = "idempotency_keys"

    project: Mapped[str] = mapped_column(String(63), primary_key=True)
    token_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    summary: Mapped[str] = mapped_column(Text)
    """The first request's method and path, for people."""
    request_id: Mapped[str] = mapped_column(String(128))
    instance: Mapped[str] = mapped_column(String(36))
    """The manager that serves the request."""
    target: Mapped[str | None] = mapped_column(String(128))
    status: Mapped[int | None] = mapped_column(Integer)
    body: Mapped[str | None] = mapped_column(Text)
    """The answer; None until the request has come to one."""
    is_final: Mapped[bool] = mapped_column()
    """Whether the answer was the request's last word, and not one of when its change was made."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class AuditRow(Base):
    """One mutating call: who did what to what, in which request, and how it ended."""

    __tablename__ = "audit"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012

    id: Mapped[int] = mapped_column(_BIG_ID, primary_key=True, autoincrement=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    actor: Mapped[str] = mapped_column(String(128))
    permission: Mapped[str] = mapped_column(String(32))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str | None] = mapped_column(String(128))
    before: Mapped[dict[str, object] | None] = mapped_column(Typed(dict[str, object]))
    after: Mapped[dict[str, object] | None] = mapped_column(Typed(dict[str, object]))
    request_id: Mapped[str | None] = mapped_column(String(128))
    result: Mapped[str] = mapped_column(String(64))
    """``ok``, the error code of the refusal, or ``pending`` while it is done."""
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
