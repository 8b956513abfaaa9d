"""What can fail on a host, on real parts: told with its cure, cleared up after, and curable."""

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.api.machines import Blob, Machine, MachineStatus
from nexus.api.vms import VmError
from tests.agent.harness import Agent, until
from tests.parts import LinuxImages

pytestmark = [pytest.mark.firecracker, pytest.mark.root]

MIB = 1 << 20


def changed(machine: Machine, **change: object) -> Machine:
    """The next generation of a desired machine."""
    return machine.model_copy(update={"generation": machine.generation + 1, **change})


def next_boot(machine: Machine) -> Machine:
    """What the manager wants after ``nexus start``."""
    return changed(machine, power="running", boot=machine.boot + 1)


def failed(status: MachineStatus, stage: str) -> VmError:
    """The error of a machine that could not start; it says what to do."""
    assert (status.state, status.pid) == ("error", None), status
    assert status.error is not None
    assert status.error.stage == stage, status.error
    assert status.error.suggestion
    return status.error


def no_traces(agent: Agent, before: dict[str, list[str]]) -> None:
    """A failed start leaves the VM's whole files, and nothing else."""
    now = agent.traces()
    assert {**now, "files": []} == {**before, "files": []}
    assert not [name for name in now["files"] if ".new" in name or ".nexus-making" in name]


def image(agent: Agent, size: int = 8 * MIB) -> Blob:
    file = agent.dir / "root.img"
    file.write_bytes(b"data" * (size // 4))
    return agent.blob(file)


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A small file system of its own."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={size},nr_inodes=10000", "tmpfs", str(folder)]
    subprocess.run(["mount", *options], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes every byte that is left."""
    filler = folder / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(descriptor, b"x" * 4096):
            pass
    os.close(descriptor)
    return filler


@pytest.fixture
def small_agent(firecracker_binary: Path) -> Iterator[Agent]:
    """An agent whose run directory lies in a file system of 2 MiB."""
    agent = Agent(FC_BINARY=str(firecracker_binary))
    agent.run_dir = agent.dir / "small" / "fc"
    agent.environment["FC_RUN_DIR"] = str(agent.run_dir)
    with mounted(agent.run_dir.parent, "2M"):
        try:
            yield agent.start()
        finally:
            agent.teardown()
    agent.close()


def test_no_space_for_a_disk(small_agent: Agent, tiny_kernel: Path) -> None:
    agent = small_agent
    before = agent.traces()
    machine = agent.machine(tiny_kernel, rootfs=image(agent))
    error = failed(agent.put(machine), "disk")
    assert "No space left on device" in error.message
    assert "df -h" in (error.suggestion or "")
    no_traces(agent, before)
    subprocess.run(["mount", "-o", "remount,size=64M", str(agent.run_dir.parent)], check=True)
    assert agent.put(next_boot(machine)).state == "running"
    agent.delete(machine.id)


def test_a_disk_that_is_full_to_the_brim(small_agent: Agent, tiny_kernel: Path) -> None:
    agent = small_agent
    runs, rests = (agent.machine(tiny_kernel, nics=[]) for _ in range(2))
    agent.put(runs)
    agent.put(rests.model_copy(update={"power": "stopped", "boot": 0}))
    before = agent.traces()
    filler = fill(agent.run_dir)

    new = agent.machine(tiny_kernel)
    answer = agent.http.put(
        f"/agent/v1/vms/{new.id}",
        content=new.model_dump_json(),
        headers={"content-type": "application/json"},
    )
    assert (answer.status_code, answer.json()["error"]) == (409, "no_capacity"), answer.text
    assert "df -h" in answer.json()["suggestion"]
    assert not (agent.run_dir / "vms" / new.id).exists()

    error = failed(agent.put(changed(rests)), "disk")
    assert "No space left" in error.message
    # What runs can be stopped all the same.
    stopped = agent.put(changed(runs, power="stopped", stop_timeout_s=0))
    assert stopped.state == "stopped"
    filler.unlink()
    no_traces(agent, {**before, "processes": [], "sockets": []})
    assert agent.put(changed(rests, generation=5)).state == "running"
    assert agent.put(changed(runs, generation=5, boot=2)).state == "running"
    for machine in (runs, rests):
        agent.delete(machine.id)


def test_an_image_that_is_gone_from_the_store(agent: Agent, tiny_kernel: Path) -> None:
    before = agent.traces()
    rootfs = image(agent)
    machine = agent.machine(tiny_kernel, rootfs=rootfs)
    for kind, blob in (("rootfs", rootfs), ("kernel", machine.kernel)):
        (agent.store / "sha256" / blob.sha256).unlink()
        error = failed(agent.put(machine), "disk")
        assert f"the {kind} image is not on this host" in error.message
        assert f"nexus image add {kind}" in (error.suggestion or "")
        no_traces(agent, before)
        image(agent)
        agent.blob(tiny_kernel)
        assert agent.put(next_boot(machine)).state == "running"
        agent.delete(machine.id)


BAD_KERNELS = {
    "empty": lambda elf: b"",
    "junk": lambda elf: b"not a kernel" * 100,
    "truncated": lambda elf: elf[: len(elf) // 2],
    "half a header": lambda elf: elf[:40],
}


@pytest.mark.parametrize("bad", BAD_KERNELS)
@pytest.mark.parametrize("engine", ["firecracker", "qemu"])
@pytest.mark.qemu
def test_a_corrupt_kernel(
    firecracker_binary: Path, tiny_kernel: Path, tmp_path: Path, engine: str, bad: str
) -> None:
    agent = Agent(FC_BINARY=str(firecracker_binary), NEXUS_ENGINE=engine)
    try:
        agent.start()
        before = agent.traces()
        kernel = tmp_path / "kernel"
        kernel.write_bytes(BAD_KERNELS[bad](tiny_kernel.read_bytes()))
        machine = agent.machine(kernel)
        status = agent.put(machine)
        assert status.error is not None
        assert status.error.stage in ("configure", "boot"), status.error
        error = failed(status, status.error.stage)
        assert "kernel" in (error.suggestion or ""), error
        assert error.fault_message
        assert error.log_tail
        no_traces(agent, before)
    finally:
        agent.close()


def test_no_memory_for_the_guest(agent: Agent, tiny_kernel: Path) -> None:
    before = agent.traces()
    assert agent.process is not None
    used = int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[0]) * 4096
    # VMMs inherit it: two GiB are more than they may map.
    resource.prlimit(agent.process.pid, resource.RLIMIT_AS, (used + 512 * MIB,) * 2)
    machine = agent.machine(tiny_kernel, mem_mib=2048 + used // MIB)
    error = failed(agent.put(machine), "boot")
    assert "Out of memory" in (error.fault_message or "")
    assert "free -m" in (error.suggestion or "")
    no_traces(agent, before)
    assert agent.put(next_boot(machine.model_copy(update={"mem_mib": 32}))).state == "running"


@pytest.mark.qemu
def test_no_memory_for_a_guest_of_qemu(tiny_kernel: Path) -> None:
    agent = Agent(NEXUS_ENGINE="qemu")
    try:
        agent.start()
        before = agent.traces()
        assert agent.process is not None
        used = int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[0]) * 4096
        resource.prlimit(agent.process.pid, resource.RLIMIT_AS, (used + 512 * MIB,) * 2)
        machine = agent.machine(tiny_kernel, mem_mib=2048 + used // MIB)
        error = failed(agent.put(machine), "configure")
        assert "memory" in (error.fault_message or "")
        assert "free -m" in (error.suggestion or "")
        no_traces(agent, before)
    finally:
        agent.close()


@pytest.mark.qemu
def test_a_qemu_that_is_gone(linux_images: LinuxImages, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for program in Path(folder).iterdir():
            if not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    agent = Agent(NEXUS_ENGINE="qemu", PATH=str(programs))
    try:
        agent.start()
        before = agent.traces()
        (programs / "qemu-system-x86_64").unlink()
        machine = agent.machine(linux_images.kernel, mem_mib=128)
        error = failed(agent.put(machine), "configure")
        assert "qemu-system-x86_64" in (error.fault_message or "")
        assert error.suggestion == "install it on the host: apt-get install qemu-system-x86"
        no_traces(agent, before)
        (programs / "qemu-system-x86_64").symlink_to("/usr/bin/qemu-system-x86_64")
        status = agent.put(next_boot(machine))
        assert (status.state, status.error) == ("running", None)
    finally:
        agent.close()


def test_a_jailed_binary_that_is_gone(
    firecracker_binary: Path, jailer_binary: Path, tiny_kernel: Path, tmp_path: Path
) -> None:
    for gone in ("firecracker", "jailer"):
        folder = tmp_path / gone
        folder.mkdir()
        paths = {
            "firecracker": Path(shutil.copy(firecracker_binary, folder / "firecracker")),
            "jailer": Path(shutil.copy(jailer_binary, folder / "jailer")),
        }
        agent = Agent(
            FC_BINARY=str(paths["firecracker"]),
            JAILER_BINARY=str(paths["jailer"]),
            NEXUS_JAILER="1",
        )
        try:
            agent.start()
            before = agent.traces()
            paths[gone].unlink()
            error = failed(agent.put(agent.machine(tiny_kernel)), "spawn")
            assert str(paths[gone]) in error.message
            no_traces(agent, before)
        finally:
            agent.close()


def test_a_guest_larger_than_the_host(agent: Agent, tiny_kernel: Path) -> None:
    before = agent.traces()
    machine = agent.machine(tiny_kernel, mem_mib=1 << 20)
    error = failed(agent.put(machine), "configure")
    assert "1048576 MiB" in error.message
    assert "--mem" in (error.suggestion or "")
    no_traces(agent, before)


@pytest.mark.parametrize("foreign", ["bridge", "tap in another bridge", "tap in use"])
def test_a_tap_name_that_is_taken(agent: Agent, tiny_kernel: Path, foreign: str) -> None:
    from nexus.agent.layout import tap_name

    machine = agent.machine(tiny_kernel)
    name = tap_name(machine.id, 0)
    holder: subprocess.Popen[bytes] | None = None
    if foreign == "bridge":
        ip("link", "add", name, "type", "bridge")
    else:
        ip("tuntap", "add", "dev", name, "mode", "tap")
    if foreign == "tap in another bridge":
        ip("link", "add", "other0", "type", "bridge")
        ip("link", "set", name, "master", "other0")
    if foreign == "tap in use":
        holder = hold_tap(name)
    before = agent.traces()
    try:
        error = failed(agent.put(machine), "network")
        assert name in error.message
        assert name in (error.suggestion or "")
        no_traces(agent, before)
        # Not even a deletion takes away what is somebody else's.
        agent.delete(machine.id)
        assert agent.traces() == before
        machine = changed(machine)
        failed(agent.put(machine), "network")
    finally:
        if holder is not None:
            holder.kill()
            holder.wait()
        ip("link", "delete", name)
        if foreign == "tap in another bridge":
            ip("link", "delete", "other0")
    assert agent.put(next_boot(machine)).state == "running"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def hold_tap(name: str) -> subprocess.Popen[bytes]:
    """A process that has a TAP open, as another VMM would."""
    program = (
        "import fcntl, os, struct, sys\n"
        "tap = os.open('/dev/net/tun', os.O_RDWR)\n"
        f"fcntl.ioctl(tap, 0x400454CA, struct.pack('16sH22x', {name!r}.encode(), 0x1002))\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        ["python3", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    return holder


def test_a_binary_that_is_gone(firecracker_binary: Path, tiny_kernel: Path, tmp_path: Path) -> None:
    binary = tmp_path / "firecracker"
    shutil.copy(firecracker_binary, binary)
    agent = Agent(FC_BINARY=str(binary))
    try:
        agent.start()
        before = agent.traces()
        binary.unlink()
        machine = agent.machine(tiny_kernel)
        error = failed(agent.put(machine), "spawn")
        assert str(binary) in error.message
        assert "FC_BINARY" in (error.suggestion or "")
        no_traces(agent, before)
        # The same wish again is not tried for ever; the next start is.
        assert agent.put(machine).boot == 1
        binary.write_bytes(b"\x7fELF junk")
        binary.chmod(0o755)
        machine = next_boot(machine)
        assert "Exec format error" in failed(agent.put(machine), "spawn").message
        shutil.copy(firecracker_binary, binary)
        status = agent.put(next_boot(machine))
        assert (status.state, status.boot) == ("running", 3)
    finally:
        agent.close()


def test_an_agent_without_its_binary_does_not_start(tmp_path: Path) -> None:
    agent = Agent(FC_BINARY=str(tmp_path / "nowhere"))
    try:
        agent.start(ready=False)
        assert agent.process is not None
        assert agent.process.wait(timeout=30) == 1
        assert "nowhere" in agent.log.read_text()
        agent.process = None
    finally:
        agent.close()


def test_a_panic_under_firecracker_is_no_power_off(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    agent.put(machine)
    agent.type(machine.id, b"P")
    status = until("the end", lambda: ended(agent, machine.id))
    assert (status.state, status.exit_cause) == ("stopped", "guest_panic")
    assert status.error is not None
    assert status.error.stage == "run"
    assert "asked to by a key" in status.error.message
    assert "nexus logs one" in (status.error.suggestion or "")
    # The panic of an earlier boot does not count for a later one.
    agent.put(next_boot(machine))
    until("it is up again", lambda: "".join(agent.console(machine.id)).count("tiny ready") == 2)
    agent.type(machine.id, b"q")
    status = until("the end", lambda: ended(agent, machine.id))
    assert (status.exit_cause, status.error) == ("guest_poweroff", None)


@pytest.mark.qemu
def test_a_panic_of_linux_is_told_with_its_cause(linux_images: LinuxImages) -> None:
    agent = Agent(NEXUS_ENGINE="qemu")
    try:
        agent.start()
        before = agent.traces()
        images = {
            "initrd": agent.blob(linux_images.initrd),
            "rootfs": agent.blob(linux_images.rootfs),
        }
        arguments = "console=ttyS0 reboot=k panic=1 quiet"
        causes = {
            # Linux's last root= counts; the VMM adds its own behind, so this one asks for init.
            f"{arguments} rootfstype=vfat": "cannot mount /dev/vda (vfat) as root",
            f"{arguments} rdinit=/none": "Unable to mount root fs",
        }
        for kernel_args, cause in causes.items():
            machine = agent.machine(
                linux_images.kernel, mem_mib=128, kernel_args=kernel_args, **images
            )
            assert agent.put(machine).state == "running"
            status = until("the panic", lambda vm_id=machine.id: ended(agent, vm_id), 120)
            assert status.exit_cause == "guest_panic"
            error = failed(status, "boot")
            assert cause in error.message
            assert any("Kernel panic" in line for line in error.log_tail)
            # How it ended is told before the TAPs are gone.
            until("the TAPs are gone", lambda: agent.traces()["links"] == before["links"])
            no_traces(agent, before)
            # It is not tried again by itself.
            assert agent.put(machine).boot == 1
            agent.delete(machine.id)
    finally:
        agent.close()


def ended(agent: Agent, vm_id: str) -> MachineStatus | None:
    status = agent.get(vm_id)
    return status if status.exit_cause else None
