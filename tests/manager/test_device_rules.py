"""The rules of drives, limits and balloons, for any request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nexus.api.devices import Balloon, DriveChange, DriveCreate, DriveLimits, NicCreate, NicLimits
from nexus.api.errors import Conflict, ValidationFailed
from nexus.api.vms import VmCreate
from nexus.ids import new_id
from nexus.manager import devices
from nexus.manager.db.columns import StoredDrive, StoredImage

MIB = 1 << 20
IMAGE = StoredImage(
    id=new_id(), kind="rootfs", name="busybox", sha256="0" * 64, size_bytes=64 * MIB - 1
)
limits = st.builds(
    DriveLimits,
    bandwidth_mib_s=st.none() | st.floats(0.1, 1000),
    bandwidth_burst_mib=st.none() | st.integers(1, 1000),
    iops=st.none() | st.integers(1, 1000),
    iops_burst=st.none() | st.integers(1, 1000),
)
drives = st.builds(
    StoredDrive,
    name=st.just("data"),
    size_mib=st.none() | st.integers(1, 1000),
    image=st.just(IMAGE),
    read_only=st.booleans(),
    limits=st.none() | limits,
)
changes = st.one_of(
    limits.map(lambda given: DriveChange(limits=given)),
    st.just(DriveChange(limits=None)),
    st.integers(1, 2000).map(lambda size_mib: DriveChange(size_mib=size_mib)),
)


def drive(**fields: object) -> StoredDrive:
    given = {"name": "data", "size_mib": 8, "image": None, "read_only": False, "limits": None}
    return StoredDrive.model_validate({**given, **fields})


@given(drives, changes)
def test_no_drive_ever_shrinks_and_asking_twice_is_asking_once(
    before: StoredDrive, change: DriveChange
) -> None:
    try:
        after = devices.changed_drive(before, change)
    except Conflict:
        wish = change.size_mib or 0
        assert before.read_only or wish < devices.present_size(before)
        return
    assert devices.present_size(after) >= devices.present_size(before)
    assert devices.changed_drive(after, change) == after


@given(st.none() | limits, limits)
def test_a_limit_that_is_left_out_stays(old: DriveLimits | None, new: DriveLimits) -> None:
    change = DriveLimits.model_validate(new.model_dump(exclude_none=True))
    after = devices.merged(old, change) or DriveLimits()
    for name in ("bandwidth_mib_s", "iops"):
        wanted = getattr(new, name)
        kept = getattr(old, name) if old else None
        assert getattr(after, name) == (kept if wanted is None else wanted)


@given(st.none() | limits)
def test_null_takes_limits_away(old: DriveLimits | None) -> None:
    assert devices.merged(old, None) is None
    everything = DriveLimits(bandwidth_mib_s=None, iops=None)
    assert devices.merged(old, everything) is None


def test_limits_of_nothing_are_no_limits() -> None:
    assert devices.simplified(NicLimits()) is None
    assert devices.simplified(DriveLimits(iops_burst=5)) is None
    assert devices.merged(NicLimits(rx_mbit_s=5), NicLimits(tx_mbit_s=1)) == NicLimits(
        rx_mbit_s=5, tx_mbit_s=1
    )


@pytest.mark.parametrize(
    "body",
    [
        {"name": "data"},
        {"name": "rootfs", "size_mib": 1},
        {"name": "config", "size_mib": 1},
        {"name": "tools", "size_mib": 5, "read_only": True},
        {"name": "tools", "size_mib": 5, "read_only": True, "image": "busybox"},
        {"name": "a-b", "size_mib": 5},
        {"name": "data", "size_mib": 5, "limits": {"bandwidth_mib_s": 0}},
        {"name": "data", "size_mib": 5, "limits": {"iops": 1.5}},
    ],
)
def test_drives_that_make_no_sense(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DriveCreate.model_validate(body)


@pytest.mark.parametrize(
    "body", [{}, {"limits": {}}, {"size_mib": None}, {"size_mib": 0}, {"path": "/etc/shadow"}]
)
def test_changes_that_change_nothing(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DriveChange.model_validate(body)


def request(**fields: object) -> VmCreate:
    return VmCreate.model_validate({"mem_mib": 128, **fields})


def some(count: int) -> list[DriveCreate]:
    return [DriveCreate(name=f"d{number}", size_mib=1) for number in range(count)]


def test_what_is_too_much_for_one_vm() -> None:
    nics = [NicCreate() for _ in range(8)]
    devices.check(request(drives=some(6), nics=nics))
    with pytest.raises(ValidationFailed, match="15"):
        devices.check(request(drives=some(6), nics=nics, balloon=Balloon()))
    with pytest.raises(ValidationFailed, match="two drives"):
        devices.check(request(drives=some(1) * 2))
    devices.check(request(balloon=Balloon(target_mib=112)))
    with pytest.raises(ValidationFailed, match="113"):
        devices.check(request(balloon=Balloon(target_mib=113)))


def test_sizes_hold_their_images() -> None:
    assert devices.size_of(IMAGE) == 64
    root = devices.root_of(request(rootfs_size_mib=64), IMAGE)
    assert root is not None
    assert devices.present_size(root) == 64
    with pytest.raises(ValidationFailed, match="smaller than its image"):
        devices.root_of(request(rootfs_size_mib=63), IMAGE)
    with pytest.raises(ValidationFailed, match="root disk"):
        devices.root_of(request(rootfs_size_mib=63), None)


def test_drives_are_shown_where_linux_finds_them() -> None:
    root, data = drive(name="rootfs", image=IMAGE, size_mib=None), drive()
    shown = devices.shown(root, [data])
    assert [(each.name, each.device, each.size_mib) for each in shown] == [
        ("rootfs", "/dev/vda", 64),
        ("data", "/dev/vdb", 8),
    ]
    assert devices.shown(None, [data])[0].device == "/dev/vda"
