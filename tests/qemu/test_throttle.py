"""Token buckets as limits of QEMU, tc and nftables."""

from nexus.qemu.throttle import (
    Limit,
    block_throttle,
    limit,
    merged,
    nic_script,
    shape_command,
    shaper_name,
)
from nexus.vmm.types import RateLimiter, TokenBucket

TEN_MB = TokenBucket(size=1_000_000, refill_time=100)
NO_LIMIT = TokenBucket(size=0, refill_time=0)


def test_a_bucket_is_a_rate_and_a_burst() -> None:
    assert limit(TEN_MB) == Limit(10_000_000, 1_000_000)
    once = TokenBucket(size=1000, refill_time=1000, one_time_burst=500)
    assert limit(once) == Limit(1000, 1500)
    assert limit(NO_LIMIT) is None
    assert limit(None) is None


def test_a_patch_changes_only_the_bucket_it_names() -> None:
    old = RateLimiter(bandwidth=TEN_MB, ops=TEN_MB)
    assert merged(old, RateLimiter(ops=NO_LIMIT)) == RateLimiter(bandwidth=TEN_MB, ops=NO_LIMIT)
    assert merged(old, None) is old


def test_a_drive_without_limits_is_freed_of_them() -> None:
    found = block_throttle("drive-x", None)
    assert found["bps"] == found["iops"] == 0


def test_a_burst_above_the_rate_is_given_to_the_drive() -> None:
    slow = RateLimiter(bandwidth=TokenBucket(size=5000, refill_time=10_000))
    found = block_throttle("drive-x", slow)
    assert (found["bps"], found["bps_max"]) == (500, 5000)


def test_receiving_is_shaped_and_freed_again() -> None:
    command = shape_command("tap0", RateLimiter(bandwidth=TEN_MB))
    assert command[:6] == ["tc", "qdisc", "replace", "dev", "tap0", "root"]
    assert "80000000bit" in command
    assert shape_command("tap0", None) == ["tc", "qdisc", "del", "dev", "tap0", "root"]


TX = RateLimiter(bandwidth=TEN_MB, ops=TokenBucket(size=100, refill_time=1000))


def test_sending_is_taken_through_a_shaper() -> None:
    script = nic_script("t", "eth0", "tap0", None, TX, shaper="itap0")
    ops = "add rule netdev t tx_eth0 limit rate over 100/second burst 100 packets drop"
    # Packets that are too many do not come to the shaper.
    assert script.splitlines()[-2:] == [ops, 'add rule netdev t tx_eth0 fwd to "itap0"']
    assert "bytes/second" not in script
    assert "add rule netdev t rx_eth0" not in script


def test_sending_is_policed_where_there_is_no_shaper() -> None:
    script = nic_script("t", "eth0", "tap0", None, TX, shaper=None)
    assert "add rule netdev t tx_eth0 limit rate over 10000000 bytes/second" in script
    assert "fwd" not in script


def test_a_shaper_is_named_after_its_tap() -> None:
    assert shaper_name("nx0123456789a") == "inx0123456789a"
    long = ["tap-of-a-guest1", "tap-of-a-guest2"]
    assert len({shaper_name(tap) for tap in long}) == 2
    assert all(len(shaper_name(tap)) == 15 for tap in long)
