"""The lab: a machine with hardware KVM, as QEMU emulates one, where real firecracker runs Linux.

QEMU under TCG emulates AMD's SVM; Debian's kernel in it loads kvm-amd; firecracker boots the kernel
and the initial RAM disk of our own builds. All of it lies in one initial RAM disk.
"""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nexus.images import cpio, debian, tools
from nexus.images.debs import Packages
from tests.parts import CACHE, LinuxImages

HERE = Path(__file__).parent
FLAGS = ("-Os", "-Wall", "-Wextra", "-Werror", "-static", "-s")
APPLETS = ("cat", "insmod", "ip", "mkdir", "mount", "poweroff", "sh", "tunctl", "wget")


@dataclass(frozen=True)
class Lab:
    kernel: Path
    initrd: Path


def build(folder: Path, images: LinuxImages, firecracker: Path) -> Lab:
    """Makes the lab's files in ``folder``."""
    packages = Packages(CACHE / "packages")
    meta = packages.fetch(debian.META_PACKAGE)
    linux = next(name for name in meta.depends if debian.KERNEL_PACKAGE.fullmatch(name))
    packages.unpack(linux, folder / "linux")
    packages.unpack("busybox-static", folder / "busybox")
    programs = [cpio.file("bin/firecracker", firecracker.read_bytes(), 0o755)]
    for source in HERE.glob("*.c"):
        made = folder / source.stem
        tools.run(["gcc", *FLAGS, "-o", str(made), str(source)])
        programs.append(cpio.file(f"bin/{source.stem}", made.read_bytes(), 0o755))

    paths = (folder / "linux" / "lib" / "modules").rglob("*.ko")
    found = {path.name.removesuffix(".ko").replace("-", "_"): path for path in paths}
    modules = debian.load_order(["kvm_amd", "tun"], found)
    entries = [cpio.directory(name) for name in ("bin", "dev", "vm")]
    entries += [
        cpio.character_device("dev/console", 5, 1),
        cpio.file("init", (HERE / "init").read_bytes(), 0o755),
        cpio.file("modules", " ".join(modules).encode() + b"\n"),
        *(cpio.file(f"{name}.ko", found[name].read_bytes()) for name in modules),
        cpio.file("bin/busybox", (folder / "busybox/bin/busybox").read_bytes(), 0o755),
        *(cpio.link(f"bin/{name}", "busybox") for name in APPLETS),
        *programs,
        cpio.file("vm/kernel", images.kernel.read_bytes()),
        cpio.file("vm/initrd", images.initrd.read_bytes()),
        cpio.file("vm/vmm.json", json.dumps(_config()).encode()),
    ]
    initrd = folder / "initrd"
    initrd.write_bytes(cpio.archive(entries))
    (kernel,) = (folder / "linux" / "boot").glob("vmlinuz-*")
    return Lab(kernel, initrd)


def _config() -> dict[str, object]:
    mac = "06:00:00:00:00:01"
    arguments = "console=ttyS0 reboot=k panic=1 quiet nexus.hostname=inner"
    arguments += f" nexus.ip=eth0,{mac},172.31.9.2/24,"
    return {
        "boot-source": {
            "kernel_image_path": "kernel",
            "initrd_path": "initrd",
            "boot_args": arguments,
        },
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "network-interfaces": [{"iface_id": "eth0", "guest_mac": mac, "host_dev_name": "tap0"}],
        "vsock": {"guest_cid": 3, "uds_path": "v.sock"},
    }


def run(lab: Lab, timeout_s: float) -> str:
    """Boots it and waits until it goes off; what its console said."""
    rate = re.search(r"cpu MHz\s*:\s*([0-9.]+)", Path("/proc/cpuinfo").read_text())
    assert rate
    clock = f"tsc=reliable tsc_early_khz={round(float(rate[1]) * 1000)}"
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-M", "q35,accel=tcg", "-cpu", "EPYC,+svm,+npt", "-m", "1536"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", "stdio", "-kernel", str(lab.kernel), "-initrd", str(lab.initrd)),
            *("-append", f"console=ttyS0 panic=1 quiet {clock}"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=timeout_s,
        check=True,
    )
    return done.stdout.decode(errors="replace").replace("\r\n", "\n")
