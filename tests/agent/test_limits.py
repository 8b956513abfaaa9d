"""Limits as token buckets, and what a VMM that runs is told of its devices."""

from hypothesis import given
from hypothesis import strategies as st

from nexus.agent.limits import (
    LARGEST_BLOCK_REQUEST,
    LARGEST_FRAME,
    MIB,
    UNLIMITED,
    bucket,
    drive_limiter,
    nic_limiter,
    outright,
)
from nexus.agent.tuning import LONGEST_REST_S, Told, changes, learnt, rest_s
from nexus.api.devices import DriveLimits, NicLimits
from nexus.vmm.types import BalloonUpdate, PartialDrive, RateLimiter, TokenBucket

drive_limits = st.builds(
    DriveLimits,
    bandwidth_mib_s=st.none() | st.floats(0.1, 100_000),
    bandwidth_burst_mib=st.none() | st.integers(1, 1 << 20),
    iops=st.none() | st.integers(1, 10_000_000),
    iops_burst=st.none() | st.integers(1, 10_000_000),
)
nic_limits = st.builds(
    NicLimits,
    rx_mbit_s=st.none() | st.floats(0.1, 400_000),
    tx_mbit_s=st.none() | st.floats(0.1, 400_000),
)
names = st.sampled_from(["rootfs", "data", "tools"])
told = st.builds(
    Told,
    drive_limits=st.dictionaries(names, st.none() | drive_limits),
    drive_sizes=st.dictionaries(names, st.none() | st.integers(1, 1 << 24)),
    nic_limits=st.dictionaries(st.sampled_from(["eth0", "eth1"]), st.none() | nic_limits),
    balloon_mib=st.none() | st.integers(0, 1024),
)


def rate(found: TokenBucket) -> float:
    return found.size * 1000 / found.refill_time


@given(st.floats(1, 1e11), st.integers(1, 1 << 21), st.none() | st.integers(1, 1 << 40))
def test_a_bucket_has_its_rate_and_holds_a_request(
    per_s: float, at_least: int, burst: int | None
) -> None:
    found = bucket(per_s, at_least=at_least, burst=burst)
    # A burst of less than a few milliseconds cannot be timed in whole ones.
    if found.refill_time >= 20:
        assert abs(rate(found) / per_s - 1) < 0.03
    assert found.size >= max(at_least, burst or 0)


@given(drive_limits)
def test_drive_limits_mean_what_they_say(limits: DriveLimits) -> None:
    limiter = drive_limiter(limits) or RateLimiter()
    assert (limiter.bandwidth is None) == (limits.bandwidth_mib_s is None)
    assert (limiter.ops is None) == (limits.iops is None)
    if limiter.bandwidth and limits.bandwidth_mib_s and limits.bandwidth_burst_mib is None:
        assert abs(rate(limiter.bandwidth) / (limits.bandwidth_mib_s * MIB) - 1) < 0.01
        assert limiter.bandwidth.size >= LARGEST_BLOCK_REQUEST


def test_a_nics_limit_is_in_megabits() -> None:
    limiter = nic_limiter(100)
    assert limiter is not None
    assert limiter.bandwidth is not None
    assert rate(limiter.bandwidth) == 12_500_000
    slow = nic_limiter(1)
    assert slow is not None
    assert slow.bandwidth is not None
    assert slow.bandwidth.size == LARGEST_FRAME + 125_000 // 8
    assert nic_limiter(None) is None


@given(drive_limits)
def test_a_patch_names_every_bucket(limits: DriveLimits) -> None:
    whole = outright(drive_limiter(limits))
    assert whole.bandwidth is not None
    assert whole.ops is not None
    assert (whole.ops == UNLIMITED) == (limits.iops is None)


@given(told, told)
def test_told_once_there_is_nothing_more_to_tell(knows: Told, wish: Told) -> None:
    for change in changes(knows, wish):
        knows = learnt(knows, change.then)
    assert list(changes(knows, wish)) == []


@given(told)
def test_the_same_wish_twice_tells_nothing(wish: Told) -> None:
    assert list(changes(wish, wish)) == []


def test_only_what_differs_is_told() -> None:
    knows = Told(drive_limits={"data": None}, drive_sizes={"data": 8, "tools": None}, balloon_mib=0)
    wish = Told(
        drive_limits={"data": None}, drive_sizes={"data": 16, "tools": None}, balloon_mib=32
    )
    assert [change.body for change in changes(knows, wish)] == [
        PartialDrive(drive_id="data", path_on_host="drive-data.img"),
        BalloonUpdate(amount_mib=32),
    ]


def test_refusals_are_tried_again_ever_more_rarely() -> None:
    rests = [rest_s(count) for count in range(1, 12)]
    assert rests == sorted(rests)
    assert rests[0] == 1.0
    assert rests[-1] == LONGEST_REST_S
