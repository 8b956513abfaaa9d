"""Firecracker's token buckets as limits of QEMU's block layer, of ``tc`` and of nftables. Pure.

A bucket of ``size`` tokens refilled over ``refill_time`` ms is a rate of size/refill_time with
bursts of ``size``; the one-time burst is added to the burst. Size or refill time 0 is no limit.
"""

import msgspec

from nexus.vmm.types import RateLimiter, TokenBucket

# tbf drops a packet that is larger than its bucket: room for one offloaded segment.
_SMALLEST_BURST = 65_536 + 1_500
_NAME_MAX = 15


class Limit(msgspec.Struct, frozen=True):
    """Tokens a second, and how many may pass at once."""

    rate: int
    burst: int


def limit(bucket: TokenBucket | None) -> Limit | None:
    """What a bucket means, or None where it sets no limit."""
    if bucket is None or not bucket.size or not bucket.refill_time:
        return None
    rate = max(1, bucket.size * 1000 // bucket.refill_time)
    return Limit(rate, bucket.size + (bucket.one_time_burst or 0))


def merged(old: RateLimiter | None, new: RateLimiter | None) -> RateLimiter | None:
    """The limiter after a PATCH: a bucket that is not named stays as it is."""
    if new is None or old is None:
        return new or old
    return RateLimiter(bandwidth=new.bandwidth or old.bandwidth, ops=new.ops or old.ops)


def block_throttle(device: str, limiter: RateLimiter | None) -> dict[str, str | int]:
    """Arguments of QMP's ``block_set_io_throttle``; 0 is no limit there."""
    given = limiter or RateLimiter()
    arguments: dict[str, str | int] = {"id": device}
    for name, bucket in (("bps", given.bandwidth), ("iops", given.ops)):
        found = limit(bucket)
        arguments |= {name: found.rate if found else 0, f"{name}_rd": 0, f"{name}_wr": 0}
        if found and found.burst > found.rate:
            arguments[f"{name}_max"] = found.burst
    return arguments


def shaper_name(tap: str) -> str:
    """The device through which what a TAP's guest sends is shaped (docs/contracts.md)."""
    return f"i{tap}" if len(tap) < _NAME_MAX else f"i{tap[:6]}{tap[-8:]}"


def shape_command(device: str, limiter: RateLimiter | None) -> list[str]:
    """The ``tc`` call that shapes what leaves through a device: a TAP's is what its guest
    receives."""
    found = limit(limiter.bandwidth if limiter else None)
    if found is None:
        return ["tc", "qdisc", "del", "dev", device, "root"]
    burst = max(found.burst, _SMALLEST_BURST)
    command = ["tc", "qdisc", "replace", "dev", device, "root", "tbf"]
    return [*command, "rate", f"{found.rate * 8}bit", "burst", f"{burst}b", "latency", "100ms"]


def nic_script(
    table: str,
    iface_id: str,
    tap: str,
    rx: RateLimiter | None,
    tx: RateLimiter | None,
    *,
    shaper: str | None,
) -> str:
    """nftables commands that bound how often the guest sends and receives, and take what it sends
    through the shaper. Without a shaper, what is beyond the limit is dropped; nftables then lets a
    second's worth pass at once.

    Safe to run again: each direction is one chain on the TAP, emptied and filled anew.
    """
    lines: list[str] = []
    received = _rules(None, rx.ops if rx else None)
    sent = _rules(tx.bandwidth if tx and shaper is None else None, tx.ops if tx else None)
    if shaper is not None:
        # Last: the packet comes back into the host behind these rules.
        sent.append(f'fwd to "{shaper}"')
    for chain, hook, rules in (
        (f"rx_{iface_id}", "egress", received),
        (
            f"tx_{iface_id}",
            "ingress",
            sent,
        ),
    ):
        at = f"netdev {table} {chain}"
        kind = f'type filter hook {hook} device "{tap}" priority 0; policy accept;'
        lines += [f"add chain {at} {{ {kind} }}", f"flush chain {at}"]
        lines += [f"add rule {at} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


def _rules(bandwidth: TokenBucket | None, ops: TokenBucket | None) -> list[str]:
    rules = []
    if found := limit(bandwidth):
        burst = max(found.burst, _SMALLEST_BURST)
        rules.append(f"limit rate over {found.rate} bytes/second burst {burst} bytes drop")
    if found := limit(ops):
        rules.append(f"limit rate over {found.rate}/second burst {found.burst} packets drop")
    return rules
