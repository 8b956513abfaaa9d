"""Whole lives, the same for Firecracker and nexus-qemu, through the typed client."""

import json
import shutil
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec
import pytest

from nexus.vmm import types as t
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmError, VmmUnreachable
from tests.vmm.lab import Lab
from tests.vmm.vmm_process import BOOT_S, EXIT_S, Engine, VmmProcess

pytestmark = [pytest.mark.root, pytest.mark.anyio]

METRICS_SHAPE = Path(__file__).with_name("metrics_shape.json")


def boot_source(engine: Engine) -> t.BootSource:
    initrd = "initrd" if engine.guest.initrd is not None else None
    return t.BootSource(
        kernel_image_path="kernel", initrd_path=initrd, boot_args=engine.guest.boot_args
    )


def root_drive() -> t.Drive:
    return t.Drive(
        drive_id="root", path_on_host="root.img", is_root_device=True, is_read_only=False
    )


MACHINE = t.MachineConfiguration(vcpu_count=1, mem_size_mib=128)


Shown = TypeVar("Shown")


async def configure(vmm: VmmProcess, engine: Engine) -> VmmClient:
    client = vmm.client
    await client.put_machine_config(MACHINE)
    await client.put_boot_source(boot_source(engine))
    await client.put_drive(root_drive())
    nic = t.NetworkInterface(iface_id="eth0", host_dev_name=vmm.tap, guest_mac="06:00:00:00:00:01")
    await client.put_network_interface(nic)
    return client


async def guest_is_up(vmm: VmmProcess, engine: Engine) -> None:
    await console(vmm, engine.guest.banner)


async def console(vmm: VmmProcess, pattern: str, start: int = 0) -> str:
    def wait() -> str:
        return vmm.console.wait_for(pattern, timeout_s=BOOT_S, start=start)[0]

    return await anyio.to_thread.run_sync(wait)


async def typed(vmm: VmmProcess, keys: str, answer: str) -> str:
    start = len(vmm.console.text)
    vmm.type(keys)
    return await console(vmm, answer, start)


async def asked_to_end(vmm: VmmProcess) -> int:
    """The exit code after Ctrl-Alt-Del, pressed again while nobody in the guest listens yet."""
    with anyio.fail_after(EXIT_S):
        while True:
            await vmm.client.send_ctrl_alt_del()
            code = await anyio.to_thread.run_sync(vmm.exit_code_within, 3.0)
            if code is not None:
                return code


async def test_boot_pause_resume_and_graceful_end(lab: Lab, engine: Engine) -> None:
    vmm = lab.with_api("--id", "life-1")
    client = await configure(vmm, engine)
    before = await client.describe_instance()
    assert (before.id, before.state) == ("life-1", "Not started")
    await client.start()
    assert (await client.describe_instance()).state == "Running"
    await guest_is_up(vmm, engine)
    await client.pause()
    assert (await client.describe_instance()).state == "Paused"
    await client.resume()
    assert (await client.describe_instance()).state == "Running"
    await typed(vmm, engine.guest.set_key, engine.guest.set_answer)
    assert await asked_to_end(vmm) == 0
    with pytest.raises(VmmUnreachable):
        await client.describe_instance()


async def test_configuration_reads_back(lab: Lab, engine: Engine) -> None:
    vmm = lab.with_api()
    client = await configure(vmm, engine)
    limiter = t.RateLimiter(
        bandwidth=t.TokenBucket(size=1000, refill_time=100),
        ops=t.TokenBucket(size=10, one_time_burst=20, refill_time=50),
    )
    data = t.Drive(
        drive_id="data",
        path_on_host="data.img",
        is_root_device=False,
        is_read_only=True,
        rate_limiter=limiter,
    )
    await client.put_drive(data)
    await client.put_balloon(t.Balloon(amount_mib=4, deflate_on_oom=True))
    await client.put_entropy(t.EntropyDevice())
    await client.patch_machine_config(t.PartialMachineConfiguration(mem_size_mib=96))

    shown = await client.vm_config()

    assert shown.boot_source == as_shown(boot_source(engine), t.ShownBootSource)
    assert shown.machine_config == t.ShownMachineConfiguration(vcpu_count=1, mem_size_mib=96)
    assert shown.balloon == t.ShownBalloon(amount_mib=4, deflate_on_oom=True)
    assert shown.entropy == t.ShownEntropyDevice()
    assert [drive.drive_id for drive in shown.drives] == ["root", "data"]
    assert shown.drives[1].is_read_only
    assert shown.drives[1].rate_limiter == as_shown(limiter, t.ShownRateLimiter)
    assert shown.drives[0].io_engine == "Sync"
    (nic,) = shown.network_interfaces
    assert (nic.iface_id, nic.host_dev_name) == ("eth0", vmm.tap)
    assert nic.guest_mac == "06:00:00:00:00:01"
    assert shown.vsock is None
    await client.put_vsock(t.Vsock(guest_cid=3, uds_path="v.sock"))
    assert (await client.vm_config()).vsock == t.ShownVsock(guest_cid=3, uds_path="v.sock")
    assert await client.machine_config() == shown.machine_config
    assert await client.balloon() == shown.balloon


async def test_patches_while_running_read_back(lab: Lab, engine: Engine) -> None:
    vmm = lab.with_api()
    client = await configure(vmm, engine)
    data = t.Drive(drive_id="data", path_on_host="data.img", is_root_device=False)
    await client.put_drive(data)
    await client.start()
    bucket = t.TokenBucket(size=2_000_000, refill_time=200)
    limiter = t.RateLimiter(bandwidth=bucket)

    await client.patch_drive(t.PartialDrive(drive_id="data", rate_limiter=limiter))
    await client.patch_network_interface(
        t.PartialNetworkInterface(iface_id="eth0", rx_rate_limiter=limiter)
    )
    await client.patch_drive(t.PartialDrive(drive_id="data", path_on_host="other.img"))

    shown = await client.vm_config()
    assert shown.drives[1].rate_limiter == as_shown(limiter, t.ShownRateLimiter)
    assert shown.drives[1].path_on_host == "other.img"
    assert shown.network_interfaces[0].rx_rate_limiter == as_shown(limiter, t.ShownRateLimiter)
    assert shown.network_interfaces[0].tx_rate_limiter is None


async def test_snapshot_goes_on_in_another_directory_with_another_tap(
    lab: Lab, engine: Engine
) -> None:
    first = lab.with_api()
    client = await configure(first, engine)
    await client.start()
    await guest_is_up(first, engine)
    await typed(first, engine.guest.set_key, engine.guest.set_answer)
    await client.pause()
    await client.create_snapshot(t.SnapshotCreateParams(snapshot_path="s", mem_file_path="m"))
    await client.resume()

    folder = lab.folder()
    await anyio.to_thread.run_sync(hand_over, first.folder, folder)
    second = lab.with_api(folder=folder)
    override = t.NetworkOverride(iface_id="eth0", host_dev_name=second.tap)
    await second.client.load_snapshot(
        t.SnapshotLoadParams(
            snapshot_path="s",
            mem_backend=t.MemoryBackend(backend_path="m", backend_type="File"),
            network_overrides=[override],
        )
    )
    assert (await second.client.describe_instance()).state == "Paused"
    await second.client.resume()
    await typed(second, engine.guest.get_key, engine.guest.get_answer)
    # The first one lives on, too.
    await typed(first, engine.guest.get_key, engine.guest.get_answer)
    shown = await second.client.vm_config()
    assert shown.network_interfaces[0].host_dev_name == second.tap
    assert shown.machine_config is not None
    assert shown.machine_config.mem_size_mib == 128


def hand_over(source: Path, target: Path) -> None:
    """State, memory and disk of a snapshot, to the directory it shall be loaded in."""
    for name in ("s", "m"):
        (target / name).hardlink_to(source / name)
    shutil.copy(source / "root.img", target / "root.img")


async def test_vsock_is_made_anew_where_a_snapshot_is_loaded(lab: Lab, engine: Engine) -> None:
    first = lab.with_api()
    client = await configure(first, engine)
    await client.put_vsock(t.Vsock(guest_cid=3, uds_path="v.sock"))
    assert (first.folder / "v.sock").is_socket()
    await client.start()
    await guest_is_up(first, engine)
    await client.pause()
    await client.create_snapshot(t.SnapshotCreateParams(snapshot_path="s", mem_file_path="m"))
    first.close()
    assert (first.folder / "v.sock").is_socket()  # nobody took it away

    load = t.SnapshotLoadParams(
        snapshot_path="s", mem_backend=t.MemoryBackend(backend_path="m", backend_type="File")
    )
    (first.folder / "api.sock").unlink()
    in_the_way = lab.with_api(folder=first.folder)
    with pytest.raises(VmmError) as refused:
        await in_the_way.client.load_snapshot(load)
    assert "Error binding to the host-side Unix socket: Address in use" in str(refused.value)

    folder = lab.folder()
    await anyio.to_thread.run_sync(hand_over, first.folder, folder)
    second = lab.with_api(folder=folder)
    # Its NIC's TAP is free again.
    await second.client.load_snapshot(load)
    assert (folder / "v.sock").is_socket()
    shown = await second.client.vm_config()
    assert shown.vsock == t.ShownVsock(guest_cid=3, uds_path="v.sock")


async def test_load_can_resume_at_once(lab: Lab, engine: Engine) -> None:
    first = lab.with_api()
    client = await configure(first, engine)
    await client.start()
    await guest_is_up(first, engine)
    await client.pause()
    await client.create_snapshot(t.SnapshotCreateParams(snapshot_path="s", mem_file_path="m"))
    first.close()

    folder = first.folder
    (folder / "api.sock").unlink(missing_ok=True)
    second = lab.with_api(folder=folder)
    await second.client.load_snapshot(
        t.SnapshotLoadParams(
            snapshot_path="s",
            mem_backend=t.MemoryBackend(backend_path="m", backend_type="File"),
            resume_vm=True,
        )
    )
    assert (await second.client.describe_instance()).state == "Running"
    await typed(second, engine.guest.set_key, engine.guest.set_answer)


async def test_config_file_boots_without_api(lab: Lab, engine: Engine) -> None:
    folder = lab.folder()
    write_config(folder, engine)
    vmm = lab.spawn("--no-api", "--config-file", "vmm.json", folder=folder)
    await guest_is_up(vmm, engine)
    assert not (folder / "api.sock").exists()


async def test_config_file_boots_with_api(lab: Lab, engine: Engine) -> None:
    folder = lab.folder()
    write_config(folder, engine)
    vmm = lab.with_api("--config-file", "vmm.json", "--id", "filed", folder=folder)
    await guest_is_up(vmm, engine)
    shown = await vmm.client.describe_instance()
    assert (shown.id, shown.state) == ("filed", "Running")
    assert shown.vmm_version == await vmm.client.version()


def write_config(folder: Path, engine: Engine) -> None:
    config = t.VmConfigFile(
        boot_source=boot_source(engine),
        drives=[root_drive()],
        machine_config=MACHINE,
        metrics=t.Metrics(metrics_path="metrics"),
        logger=t.Logger(log_path="log", level="Info"),
    )
    (folder / "vmm.json").write_bytes(msgspec.json.encode(config))


async def test_metrics_have_one_shape(lab: Lab, engine: Engine) -> None:
    """Each flush appends one line; its groups and fields are Firecracker's."""
    vmm = lab.with_api()
    client = await configure(vmm, engine)
    await client.put_metrics(t.Metrics(metrics_path="metrics"))
    await client.start()
    await client.flush_metrics()
    await client.flush_metrics()
    lines = (vmm.folder / "metrics").read_text().splitlines()
    assert len(lines) >= 2
    flushed = json.loads(lines[-1])
    assert flushed.pop("utc_timestamp_ms") > 1_600_000_000_000
    shape = json.loads(METRICS_SHAPE.read_text())
    assert {group: sorted(fields) for group, fields in flushed.items()} == shape


async def test_log_file_tells_of_requests(lab: Lab, engine: Engine) -> None:
    vmm = lab.with_api("--log-path", "log", "--level", "Debug", "--show-level")
    await vmm.client.put_machine_config(MACHINE)
    log = (vmm.folder / "log").read_text()
    assert "/machine-config" in log


async def test_mmds_is_a_json_store(lab: Lab) -> None:
    client = lab.with_api().client
    await client.put_mmds({"a": {"b": 1, "c": 2}, "d": [1]})
    await client.patch_mmds({"a": {"b": None}, "e": "x"})
    assert await client.mmds() == {"a": {"c": 2}, "d": [1], "e": "x"}


def as_shown(asked: object, shape: type[Shown]) -> Shown:
    """What was asked for, as ``GET /vm/config`` would show it."""
    return msgspec.convert(asked, shape, from_attributes=True)
