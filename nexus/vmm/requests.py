"""Bodies of the requests of Firecracker's API, and its ``--config-file``.

Field names, ranges and defaults follow the published API of Firecracker 1.12
(src/firecracker/swagger/firecracker.yaml); what came later says so. Unknown fields are refused as
Firecracker refuses them; fields left at their default are not sent.
"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

U8: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=255)]
U16: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65535)]
U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
# msgspec bounds integers by i64; Firecracker's u64 fields never need the upper half.
U64: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]

CpuTemplate: TypeAlias = Literal["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"]
HugePages: TypeAlias = Literal["None", "2M"]
CacheType: TypeAlias = Literal["Unsafe", "Writeback"]
IoEngine: TypeAlias = Literal["Sync", "Async"]
ActionType: TypeAlias = Literal["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]
VmState: TypeAlias = Literal["Paused", "Resumed"]
SnapshotType: TypeAlias = Literal["Full", "Diff"]
MmdsVersion: TypeAlias = Literal["V1", "V2"]

# The CPU template format is Firecracker's own and large; it travels as the JSON it is.
CpuConfig: TypeAlias = dict[str, Any]
# MMDS holds any JSON object.
MmdsContents: TypeAlias = dict[str, Any]


class Request(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A body that Firecracker parses strictly."""


class BootSource(Request, frozen=True, kw_only=True):
    """``PUT /boot-source``, before boot. Paths are relative to the VMM's working directory."""

    kernel_image_path: str
    initrd_path: str | None = None
    boot_args: str | None = None


class MachineConfiguration(Request, frozen=True, kw_only=True):
    """``PUT /machine-config``, before boot: 1 to 32 vCPUs; memory in MiB."""

    vcpu_count: U8
    mem_size_mib: U64
    smt: bool = False
    cpu_template: CpuTemplate | None = None
    track_dirty_pages: bool = False
    huge_pages: HugePages = "None"


class PartialMachineConfiguration(Request, frozen=True, kw_only=True):
    """``PATCH /machine-config``, before boot: what is ``None`` stays as it is."""

    vcpu_count: U8 | None = None
    mem_size_mib: U64 | None = None
    smt: bool | None = None
    cpu_template: CpuTemplate | None = None
    track_dirty_pages: bool | None = None
    huge_pages: HugePages | None = None


class TokenBucket(Request, forbid_unknown_fields=False, frozen=True, kw_only=True):
    """``size`` tokens refilled over ``refill_time`` milliseconds, after a one-time burst.

    Size and refill time 0 mean no limit. Firecracker ignores unknown fields here.
    """

    size: U64
    one_time_burst: U64 | None = None
    refill_time: U64


class RateLimiter(Request, frozen=True, kw_only=True):
    """Limits in bytes/s and operations/s. In a PATCH a bucket that is ``None`` stays as it is."""

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


class Drive(Request, frozen=True, kw_only=True):
    """``PUT /drives/{drive_id}``, before boot.

    ``path_on_host`` for a file or block device, ``socket`` for a vhost-user-block backend.
    """

    drive_id: str
    partuuid: str | None = None
    is_root_device: bool
    cache_type: CacheType = "Unsafe"
    is_read_only: bool | None = None
    path_on_host: str | None = None
    rate_limiter: RateLimiter | None = None
    io_engine: IoEngine | None = None
    socket: str | None = None


class PartialDrive(Request, frozen=True, kw_only=True):
    """``PATCH /drives/{drive_id}``, after boot: another file, or other limits."""

    drive_id: str
    path_on_host: str | None = None
    rate_limiter: RateLimiter | None = None


class NetworkInterface(Request, frozen=True, kw_only=True):
    """``PUT /network-interfaces/{iface_id}``, before boot; ``host_dev_name`` is the TAP."""

    iface_id: str
    host_dev_name: str
    guest_mac: str | None = None
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class PartialNetworkInterface(Request, frozen=True, kw_only=True):
    """``PATCH /network-interfaces/{iface_id}``, after boot: other limits."""

    iface_id: str
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class InstanceActionInfo(Request, frozen=True, kw_only=True):
    """``PUT /actions``."""

    action_type: ActionType


class Vm(Request, frozen=True, kw_only=True):
    """``PATCH /vm``: pause or resume."""

    state: VmState


class SnapshotCreateParams(Request, frozen=True, kw_only=True):
    """``PUT /snapshot/create``, while paused."""

    snapshot_path: str
    mem_file_path: str
    snapshot_type: SnapshotType = "Full"


class MemoryBackend(Request, frozen=True, kw_only=True):
    """Where a snapshot's memory comes from: a file, or a userfaultfd handler's socket."""

    backend_path: str
    backend_type: Literal["File", "Uffd"]


class NetworkOverride(Request, forbid_unknown_fields=False, frozen=True, kw_only=True):
    """Another TAP for an interface of a snapshot."""

    iface_id: str
    host_dev_name: str


class SnapshotLoadParams(Request, frozen=True, kw_only=True):
    """``PUT /snapshot/load`` in a fresh VMM.

    Exactly one of ``mem_backend`` and the deprecated ``mem_file_path`` is given.
    """

    snapshot_path: str
    mem_file_path: str | None = None
    mem_backend: MemoryBackend | None = None
    enable_diff_snapshots: bool = False
    resume_vm: bool = False
    network_overrides: list[NetworkOverride] = []


class Balloon(Request, frozen=True, kw_only=True):
    """``PUT /balloon``, before boot; statistics only when the interval is not 0."""

    amount_mib: U32
    deflate_on_oom: bool
    stats_polling_interval_s: U16 = 0


class BalloonUpdate(Request, frozen=True, kw_only=True):
    """``PATCH /balloon``, after boot."""

    amount_mib: U32


class BalloonStatsUpdate(Request, frozen=True, kw_only=True):
    """``PATCH /balloon/statistics``, after boot; from or to 0 is refused."""

    stats_polling_interval_s: U16


class EntropyDevice(Request, frozen=True, kw_only=True):
    """``PUT /entropy``, before boot."""

    rate_limiter: RateLimiter | None = None


class Vsock(Request, frozen=True, kw_only=True):
    """``PUT /vsock``, before boot. The guest's CID is 3 or more; ``vsock_id`` is deprecated."""

    vsock_id: str | None = None
    guest_cid: U32
    uds_path: str


class MmdsConfig(Request, frozen=True, kw_only=True):
    """``PUT /mmds/config``, before boot and after the interfaces it names."""

    version: MmdsVersion = "V1"
    network_interfaces: list[str]
    ipv4_address: str | None = None


class SerialDevice(Request, frozen=True, kw_only=True):
    """``PUT /serial``, before boot. Firecracker 1.14 and newer."""

    serial_out_path: str | None = None


class Logger(Request, frozen=True, kw_only=True):
    """``PUT /logger``. Levels are case-insensitive: Off, Trace, Debug, Info, Warning, Error."""

    log_path: str | None = None
    level: str | None = None
    show_level: bool | None = None
    show_log_origin: bool | None = None
    module: str | None = None


class Metrics(Request, forbid_unknown_fields=False, frozen=True, kw_only=True):
    """``PUT /metrics``, once in a VMM's life: where one line of JSON is appended per flush."""

    metrics_path: str


class VmConfigFile(Request, rename="kebab", forbid_unknown_fields=False, frozen=True, kw_only=True):
    """The file given with ``--config-file``; ``cpu_config`` is the path of a CPU template."""

    boot_source: BootSource
    drives: list[Drive]
    balloon: Balloon | None = None
    cpu_config: str | None = None
    entropy: EntropyDevice | None = None
    logger: Logger | None = None
    machine_config: MachineConfiguration | None = None
    metrics: Metrics | None = None
    mmds_config: MmdsConfig | None = None
    network_interfaces: list[NetworkInterface] = []
    vsock: Vsock | None = None
