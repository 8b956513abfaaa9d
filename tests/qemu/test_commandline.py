"""From a configuration to QEMU's arguments."""

import json

from nexus.qemu.commandline import (
    DEFAULT_BOOT_ARGS,
    LAST_SLOT,
    Host,
    Machine,
    Nic,
    arguments,
    boot_arguments,
)
from nexus.vmm.types import (
    Balloon,
    Drive,
    EntropyDevice,
    MachineConfiguration,
    RateLimiter,
    TokenBucket,
)

TCG = Host("qemu-system-x86_64", kvm=False, tsc_khz=2_600_000, sandbox=True)
KVM = Host("qemu-system-x86_64", kvm=True, tsc_khz=None, sandbox=True)
ROOT = Drive(drive_id="rootfs", path_on_host="rootfs.ext4", is_root_device=True)
DATA = Drive(drive_id="data", path_on_host="a,b:c.img", is_root_device=False, is_read_only=True)


def machine(**changes: object) -> Machine:
    given: dict[str, object] = {
        "instance_id": "vm1",
        "config": MachineConfiguration(vcpu_count=2, mem_size_mib=256),
        "memory_fd": 7,
        "qmp_fd": 8,
        "kernel": "kernel",
        "boot_args": "console=ttyS0",
    }
    return Machine(**(given | changes))  # type: ignore[arg-type]


def after(argv: list[str], option: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == option]


def devices(argv: list[str]) -> list[dict[str, object]]:
    return [json.loads(text) for text in after(argv, "-device")]


def test_a_tcg_machine_starts_stopped_on_a_file_that_a_snapshot_can_copy() -> None:
    argv = arguments(machine(), TCG)
    assert "-S" in argv
    assert after(argv, "-cpu") == ["max"]
    assert after(argv, "-object")[0] == (
        "memory-backend-file,id=mem,size=268435456,mem-path=/proc/self/fd/7,share=on"
    )
    assert after(argv, "-kernel") == ["kernel"]
    assert after(argv, "-smp") == ["2,threads=1,sockets=1"]


def test_hardware_kvm_gives_the_host_cpu() -> None:
    argv = arguments(machine(), KVM)
    assert after(argv, "-accel") == ["kvm"]
    assert after(argv, "-cpu") == ["host"]


def test_a_machine_without_kernel_waits_for_a_snapshot() -> None:
    argv = arguments(machine(kernel=None), TCG)
    assert after(argv, "-incoming") == ["defer"]
    assert "-append" not in argv


def test_a_loaded_machine_changes_its_own_copy_of_a_snapshots_file() -> None:
    argv = arguments(machine(kernel=None, memory_private=True), TCG)
    assert after(argv, "-object")[0].endswith("mem-path=/proc/self/fd/7,share=off")


def test_the_root_drive_is_the_first_device_wherever_it_was_configured() -> None:
    argv = arguments(machine(drives=[DATA, ROOT]), TCG)
    assert [device["id"] for device in devices(argv)] == ["drive-rootfs", "drive-data"]
    assert devices(argv)[0]["bus"] == f"virtio-mmio-bus.{LAST_SLOT}"


def test_file_names_travel_as_json_and_are_never_parsed() -> None:
    argv = arguments(machine(drives=[DATA]), TCG)
    node = json.loads(after(argv, "-blockdev")[0])
    assert node["file"]["filename"] == "a,b:c.img"
    assert node["read-only"] is True


def test_cache_type_unsafe_ignores_flushes() -> None:
    safe = Drive(drive_id="d", path_on_host="d", is_root_device=False, cache_type="Writeback")
    argv = arguments(machine(drives=[ROOT, safe]), TCG)
    unsafe_node, safe_node = (json.loads(text) for text in after(argv, "-blockdev"))
    assert unsafe_node["cache"] == {"no-flush": True}
    assert safe_node["cache"] == {"no-flush": False}


def test_nic_balloon_and_entropy() -> None:
    limiter = RateLimiter(bandwidth=TokenBucket(size=1000, refill_time=100))
    argv = arguments(
        machine(
            nics=[Nic("eth0", "06:00:00:00:00:01", 9)],
            balloon=Balloon(amount_mib=0, deflate_on_oom=True),
            entropy=EntropyDevice(rate_limiter=limiter),
        ),
        TCG,
    )
    assert after(argv, "-netdev") == ["tap,id=tap-eth0,fd=9,vhost=off"]
    nic, balloon, rng = devices(argv)
    assert nic["mac"] == "06:00:00:00:00:01"
    assert balloon["deflate-on-oom"] is True
    assert (rng["max-bytes"], rng["period"]) == (1000, 100)


def test_the_guest_is_told_its_root_and_under_tcg_the_rate_of_its_clock() -> None:
    assert boot_arguments("quiet", [ROOT], TCG) == (
        "quiet root=/dev/vda rw pci=off tsc_early_khz=2600000 tsc=reliable"
    )
    assert boot_arguments("quiet", [], KVM) == "quiet pci=off"
    assert boot_arguments(None, [], KVM) == f"{DEFAULT_BOOT_ARGS} pci=off"


def test_a_read_only_root_and_a_partition() -> None:
    root = Drive(
        drive_id="r", path_on_host="r", is_root_device=True, is_read_only=True, partuuid="0eaa-01"
    )
    assert boot_arguments("", [root], KVM) == "root=PARTUUID=0eaa-01 ro pci=off"
