"""Bodies of the answers of Firecracker's API.

Every field is written, absent ones as ``null``, as Firecracker does; unknown fields are ignored
when read, so an answer of a newer Firecracker can be read too.
"""

from typing import Literal, TypeAlias

import msgspec

from nexus.vmm.requests import (
    Balloon,
    BootSource,
    CpuConfig,
    Drive,
    EntropyDevice,
    Logger,
    MachineConfiguration,
    Metrics,
    MmdsConfig,
    NetworkInterface,
    RateLimiter,
    TokenBucket,
    Vsock,
)

InstanceState: TypeAlias = Literal["Not started", "Running", "Paused"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A body that Firecracker writes."""


class Error(Answer, frozen=True, kw_only=True):
    """The body of every answer that is not 2xx."""

    fault_message: str


class InstanceInfo(Answer, frozen=True, kw_only=True):
    """``GET /``."""

    id: str
    state: InstanceState
    vmm_version: str
    app_name: str


class FirecrackerVersion(Answer, frozen=True, kw_only=True):
    """``GET /version``."""

    firecracker_version: str


class ShownMachineConfiguration(
    MachineConfiguration,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=False,
    omit_defaults=False,
):
    """``GET /machine-config``. Firecracker omits ``cpu_template`` when there is none."""


class ShownTokenBucket(
    TokenBucket, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=False
):
    """A token bucket as it is configured."""


class ShownRateLimiter(
    RateLimiter, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=False
):
    """A rate limiter as it is configured."""

    bandwidth: ShownTokenBucket | None = None
    ops: ShownTokenBucket | None = None


class ShownDrive(
    Drive, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=False
):
    """A drive as it is configured."""

    rate_limiter: ShownRateLimiter | None = None


class ShownNetworkInterface(
    NetworkInterface, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=False
):
    """A network interface as it is configured."""

    rx_rate_limiter: ShownRateLimiter | None = None
    tx_rate_limiter: ShownRateLimiter | None = None


class ShownBootSource(
    BootSource, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=False
):
    """The boot source as it is configured; the kernel's path is empty when there is none."""


class ShownBalloon(
    Balloon, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=False
):
    """``GET /balloon``."""


class ShownEntropyDevice(
    EntropyDevice, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=False
):
    """The entropy device as it is configured."""

    rate_limiter: ShownRateLimiter | None = None


class ShownMmdsConfig(
    MmdsConfig, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=False
):
    """The MMDS configuration."""


class ShownVsock(Vsock, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The vsock device as it is configured; ``vsock_id`` only when it was given."""


class ShownLogger(
    Logger, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=False
):
    """The logger's configuration."""


class FullVmConfiguration(Answer, rename="kebab", frozen=True, kw_only=True):
    """``GET /vm/config``."""

    balloon: ShownBalloon | None = None
    drives: list[ShownDrive] = []
    boot_source: ShownBootSource | None = None
    cpu_config: CpuConfig | None = None
    logger: ShownLogger | None = None
    machine_config: ShownMachineConfiguration | None = None
    metrics: Metrics | None = None
    mmds_config: ShownMmdsConfig | None = None
    network_interfaces: list[ShownNetworkInterface] = []
    vsock: ShownVsock | None = None
    entropy: ShownEntropyDevice | None = None


class BalloonStats(Answer, omit_defaults=True, frozen=True, kw_only=True):
    """``GET /balloon/statistics``: memory in bytes; what the guest does not report is absent."""

    target_pages: int
    actual_pages: int
    target_mib: int
    actual_mib: int
    swap_in: int | None = None
    swap_out: int | None = None
    major_faults: int | None = None
    minor_faults: int | None = None
    free_memory: int | None = None
    total_memory: int | None = None
    available_memory: int | None = None
    disk_caches: int | None = None
    hugetlb_allocations: int | None = None
    hugetlb_failures: int | None = None
    oom_kill: int | None = None
    alloc_stall: int | None = None
    async_scan: int | None = None
    direct_scan: int | None = None
    async_reclaim: int | None = None
    direct_reclaim: int | None = None
