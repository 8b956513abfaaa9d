"""Drives, NICs, limits and balloons on the command line."""

import pytest

from nexus.api.devices import (
    Balloon,
    DriveCreate,
    DriveLimits,
    NicCreate,
    NicLimits,
)
from nexus.api.vms import VmDrive, VmError
from nexus.cli import devices
from tests.cli.calling import call, done, done_json
from tests.client.wire import Wire, make_vm


def test_run_furnishes_a_vm(wire: Wire) -> None:
    options = ["--drive", "data,size=10G,bw=50,iops=1000", "--drive", "tools,image=busybox,ro"]
    options += ["--nic", "nat", "--nic", "rx=100,tx=50.5", "--root-size", "4G"]
    options += ["--root-limit", "iops=500", "--balloon", "64M,stats=1"]
    done(wire, "run", "busybox", "--name", "db", *options)
    (body,) = wire.bodies
    assert body["drives"] == [
        {"name": "data", "size_mib": 10240, "limits": {"bandwidth_mib_s": 50, "iops": 1000}},
        {"name": "tools", "image": "busybox", "read_only": True},
    ]
    assert body["nics"] == [{}, {"limits": {"rx_mbit_s": 100, "tx_mbit_s": 50.5}}]
    assert (body["rootfs_size_mib"], body["rootfs_limits"]) == (4096, {"iops": 500})
    assert body["balloon"] == {"target_mib": 64, "stats_interval_s": 1}


def test_changes_say_only_what_was_given(wire: Wire) -> None:
    assert done(wire, "drive", "limit", "web", "data", "--bw", "50", "--iops", "none") == "web\n"
    done(wire, "drive", "grow", "web", "rootfs", "20G")
    done(wire, "nic", "limit", "web", "eth1", "--tx", "2.5")
    assert done_json(wire, "balloon", "web", "64M", "-o", "json")["item"]["name"] == "web"
    assert wire.bodies == [
        {"limits": {"bandwidth_mib_s": 50, "iops": None}},
        {"size_mib": 20480},
        {"limits": {"tx_mbit_s": 2.5}},
        {"target_mib": 64},
    ]
    assert [(method, path) for method, path, _ in wire.asked] == [
        ("PATCH", "/v1/vms/web/drives/data"),
        ("PATCH", "/v1/vms/web/drives/rootfs"),
        ("PATCH", "/v1/vms/web/nics/eth1"),
        ("PATCH", "/v1/vms/web/balloon"),
    ]


def test_a_refusal_is_shown_in_the_vmms_words(wire: Wire) -> None:
    refused = call(wire, "balloon", "fault", "64M")
    assert refused.returncode == 1
    assert b"the VMM says: not activated yet" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "busybox", "--drive", "data"],
        ["run", "busybox", "--drive", "data,size=lots"],
        ["run", "busybox", "--drive", "data,path=/etc/shadow"],
        ["run", "busybox", "--drive", "rootfs,size=1G"],
        ["run", "busybox", "--nic", "a_b"],
        ["run", "busybox", "--nic", "rx=fast"],
        ["run", "busybox", "--root-limit", "rx=5"],
        ["run", "busybox", "--balloon", "64M,x"],
        ["drive", "limit", "web", "data"],
        ["drive", "limit", "web", "data", "--bw", "-1"],
        ["drive", "limit", "web", "data", "--iops", "0"],
        ["drive", "grow", "web", "data", "big"],
        ["nic", "limit", "web", "eth0"],
        ["balloon", "web", "some"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(wire: Wire, arguments: list[str]) -> None:
    ended = call(wire, *arguments)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert b"nexus: " in ended.stderr
    assert b"Traceback" not in ended.stderr
    assert wire.asked == []


def test_show_tells_of_devices() -> None:
    vm = make_vm("web")
    nic = vm.nics[0].model_copy(update={"limits": NicLimits(rx_mbit_s=100)})
    vm = vm.model_copy(
        update={
            "nics": [nic],
            "drives": [
                VmDrive(
                    name="data",
                    device="/dev/vdb",
                    size_mib=64,
                    image=None,
                    read_only=True,
                    limits=DriveLimits(bandwidth_mib_s=1.5, iops=7),
                )
            ],
            "balloon": Balloon(target_mib=5),
            "devices_error": VmError(stage="run", message="no", fault_message="because"),
        }
    )
    assert devices.shown(vm) == [
        ("drive data", "/dev/vdb 64 MiB read-only at most 1.5 MiB/s, 7 IOPS"),
        ("eth0", "10.77.0.5/20 06:00:0a:4d:00:05 on t5 at most receives 100 Mbit/s"),
        ("balloon", "5 MiB are to be given back"),
        ("refused", "no"),
        ("the VMM says", "because"),
    ]


def test_words_of_a_specification() -> None:
    assert devices.drive("data,size=1T,rw").size_mib == 1 << 20
    assert devices.drive("d,size=1,bw-burst=8,bw=2") == DriveCreate(
        name="d", size_mib=1, limits=DriveLimits(bandwidth_mib_s=2, bandwidth_burst_mib=8)
    )
    assert devices.nic("nat,rx=1") == NicCreate(limits=NicLimits(rx_mbit_s=1))
    assert devices.drive("db,volume=data,ro") == DriveCreate(
        name="db", volume="data", read_only=True
    )
    assert devices.nic("lab,ip=10.9.0.5") == NicCreate(network="lab", ip="10.9.0.5")
    assert devices.balloon("0,no-deflate") == Balloon(target_mib=0, deflate_on_oom=False)
