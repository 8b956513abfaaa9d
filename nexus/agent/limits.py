"""Limits in people's units as Firecracker's token buckets. Pure.

A bucket that holds little makes a limit that is obeyed at every moment; one that holds less than a
single request is not obeyed at all, because Firecracker lets a request through that is larger than
its bucket. So a bucket holds a fifth of a second, and never less than the largest request.
"""

from nexus.api.devices import DriveLimits, NicLimits
from nexus.vmm.types import RateLimiter, TokenBucket

MIB = 1 << 20
BYTES_PER_MBIT = 125_000
BUCKETS_PER_S = 5
LARGEST_BLOCK_REQUEST = 1280 << 10
"""Linux asks a disk for no more at once (``max_sectors_kb``)."""
LARGEST_FRAME = 65_536 + 14 + 12
"""One segment as a guest gives it away for splitting, its Ethernet and its virtio header."""
LOOKS_PER_S = 8
"""Firecracker's are 10 on a host that is never late."""
UNLIMITED = TokenBucket(size=0, refill_time=0)
"""Takes a limit away, where an absent bucket would leave it as it is."""


def bucket(rate_per_s: float, *, at_least: int = 1, burst: int | None = None) -> TokenBucket:
    """A bucket that lets ``rate_per_s`` tokens pass each second, and ``burst`` at once."""
    holds = burst if burst is not None else round(rate_per_s / BUCKETS_PER_S)
    size = max(1, at_least, holds)
    return TokenBucket(size=size, refill_time=max(1, round(size * 1000 / rate_per_s)))


def drive_limiter(limits: DriveLimits | None) -> RateLimiter | None:
    """None is no limit at all."""
    if limits is None:
        return None
    bandwidth = ops = None
    if limits.bandwidth_mib_s is not None:
        burst_mib = limits.bandwidth_burst_mib
        bandwidth = bucket(
            limits.bandwidth_mib_s * MIB,
            at_least=LARGEST_BLOCK_REQUEST,
            burst=None if burst_mib is None else burst_mib * MIB,
        )
    if limits.iops is not None:
        ops = bucket(limits.iops, burst=limits.iops_burst)
    return RateLimiter(bandwidth=bandwidth, ops=ops) if bandwidth or ops else None


def nic_limiter(mbit_s: float | None) -> RateLimiter | None:
    """One direction of a NIC; None is no limit."""
    if mbit_s is None:
        return None
    rate = mbit_s * BYTES_PER_MBIT
    # Firecracker looks again 100 ms after tokens ran out. A frame waits for its tokens that long,
    # and a bucket that is full meanwhile loses what it is due: it gets room for it.
    least = LARGEST_FRAME + round(rate / LOOKS_PER_S)
    return RateLimiter(bandwidth=bucket(rate, at_least=least))


def nic_limiters(limits: NicLimits | None) -> tuple[RateLimiter | None, RateLimiter | None]:
    """What the guest may receive, and what it may send."""
    if limits is None:
        return None, None
    return nic_limiter(limits.rx_mbit_s), nic_limiter(limits.tx_mbit_s)


def outright(limiter: RateLimiter | None) -> RateLimiter:
    """The limiter for a PATCH: it names every bucket, so nothing of an earlier one stays."""
    given = limiter or RateLimiter()
    return RateLimiter(bandwidth=given.bandwidth or UNLIMITED, ops=given.ops or UNLIMITED)
