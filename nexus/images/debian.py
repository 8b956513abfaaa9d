"""Debian's cloud kernel for microVMs: the ELF ``vmlinux``, the bzImage, and an initial RAM disk.

The kernel comes from the package that ``linux-image-cloud-amd64`` depends on. A bzImage is a small
loader with the compressed ``vmlinux`` as its payload (Documentation/arch/x86/boot.rst): Firecracker
boots only the ELF, and QEMU boots it faster than the bzImage.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from nexus.images import cpio, guestagent, skeleton, tools, workplace
from nexus.images.debs import Packages
from nexus.images.errors import BuildError
from nexus.images.progress import Progress, quiet

META_PACKAGE = "linux-image-cloud-amd64"
KERNEL_PACKAGE = re.compile(r"linux-image-\d[0-9.]*-[0-9]+-cloud-amd64")

MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "overlay",
    "isofs",
    "button",
    "evdev",
    "virtio_console",
    "virtio-rng",
    "virtio_balloon",
)
"""What Debian builds as modules and a microVM needs; their own needs are found in the files."""

COMMANDS = ("findfs", "modprobe", "mount", "sh", "switch_root")
"""The commands that the first program uses before the root disk is there."""

SETUP_SECTS = 0x1F1
BOOT_MAGIC = 0x202
PAYLOAD_OFFSET = 0x248
PAYLOAD_LENGTH = 0x24C
SECTOR = 512
LZ4_LEGACY = b"\x02\x21\x4c\x18"
ELF = b"\x7fELF"


@dataclass(frozen=True)
class DebianKernel:
    """Paths of what was built, and the kernel's release."""

    vmlinux: Path
    bzimage: Path
    initrd: Path
    release: str


def build(out: Path, *, packages: Packages, progress: Progress = quiet) -> DebianKernel:
    """Builds ``vmlinux``, ``bzImage`` and ``initrd`` in ``out``, each put there whole.

    Raises ToolMissing or BuildError.
    """
    tools.find("lz4")
    with workplace.folder(out) as work:
        progress(0.0, "fetching Debian's cloud kernel")
        meta = packages.fetch(META_PACKAGE)
        concrete = next((n for n in meta.depends if KERNEL_PACKAGE.fullmatch(n)), None)
        if concrete is None:
            raise BuildError(
                f"{META_PACKAGE} {meta.version} names no kernel package",
                "use the package sources of Debian 12",
            )
        packages.fetch(concrete)
        progress(0.5, "fetching busybox")
        packages.unpack("busybox-static", work / "busybox")
        progress(0.6, f"unpacking {concrete}")
        packages.unpack(concrete, work / "linux")
        release = concrete.removeprefix("linux-image-")

        progress(0.8, "extracting the kernel")
        bzimage = work / "linux" / "boot" / f"vmlinuz-{release}"
        vmlinux = work / "vmlinux"
        extract_vmlinux(bzimage, vmlinux)

        progress(0.9, "packing the initial RAM disk")
        initrd = work / "initrd"
        busybox = (work / "busybox" / "bin" / "busybox").read_bytes()
        agent = guestagent.build(work / "agent").read_bytes()
        modules = work / "linux" / "lib" / "modules" / release
        entries = initrd_entries(modules, release, busybox, agent)
        initrd.write_bytes(tools.run(["lz4", "-l", "-9", "-c"], stdin=cpio.archive(entries)))

        made = DebianKernel(out / "vmlinux", out / "bzImage", out / "initrd", release)
        for source, dest in (
            (bzimage, made.bzimage),
            (vmlinux, made.vmlinux),
            (initrd, made.initrd),
        ):
            source.chmod(0o644)
            source.replace(dest)
    progress(1.0, "done")
    return made


def extract_vmlinux(bzimage: Path, dest: Path) -> None:
    """Writes the ELF kernel that is the payload of a bzImage to ``dest``. Raises BuildError."""
    image = bzimage.read_bytes()
    if image[BOOT_MAGIC : BOOT_MAGIC + 4] != b"HdrS":
        raise BuildError(f"{bzimage.name} is no bzImage", "give a kernel for x86-64")
    start = ((image[SETUP_SECTS] or 4) + 1) * SECTOR
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    payload = image[start + offset : start + offset + length]
    if not payload.startswith(LZ4_LEGACY):
        raise BuildError(
            f"the kernel in {bzimage.name} is not compressed with LZ4",
            "extract it with scripts/extract-vmlinux of the kernel's source",
        )
    # The last four bytes are the size of what was compressed; lz4 does not know them.
    kernel = tools.run(["lz4", "-d", "-c"], stdin=payload[:-4])
    (size,) = struct.unpack("<I", payload[-4:])
    if len(kernel) != size or not kernel.startswith(ELF):
        raise BuildError(f"the kernel in {bzimage.name} is damaged", "fetch the package again")
    dest.write_bytes(kernel)


def initrd_entries(modules: Path, release: str, busybox: bytes, agent: bytes) -> list[cpio.Entry]:
    """The files of the initial RAM disk: busybox, drivers, the guest's agent and its own files."""
    folders = (
        "bin",
        "dev",
        "etc",
        "lib",
        "lib/modules",
        "proc",
        "root",
        "run",
        "sbin",
        "sys",
        "tmp",
    )
    here = f"lib/modules/{release}"
    entries = [cpio.directory(name) for name in (*folders, "usr", "usr/bin", "usr/sbin", here)]
    entries += [
        cpio.character_device("dev/console", 5, 1),
        cpio.character_device("dev/null", 1, 3, 0o666),
        cpio.file("bin/busybox", busybox, 0o755),
        cpio.file(guestagent.NAME, agent, 0o755),
    ]
    entries += [cpio.link(f"bin/{name}", "busybox") for name in COMMANDS]
    for item in skeleton.files("initrd", "busybox"):
        if item.is_folder:
            if item.name != "etc":
                entries.append(cpio.directory(item.name))
            else:
                continue
        else:
            entries.append(cpio.file(item.name, item.data, item.permissions))
    entries += [cpio.link(name, target) for name, target in skeleton.LINKS.items()]

    found = {_name(path.name): path for path in modules.rglob("*.ko")}
    order = load_order([_name(name) for name in MODULES], found)
    needs = {name: _needs(found[name].read_bytes()) for name in order}
    for name in order:
        entries.append(cpio.file(f"{here}/{name}.ko", found[name].read_bytes()))
    table = "".join(f"{n}.ko:{''.join(f' {d}.ko' for d in needs[n])}\n" for n in order)
    entries += [
        cpio.file(f"{here}/modules.dep", table.encode()),
        cpio.file("etc/nexus/modules", (" ".join(order) + "\n").encode()),
        cpio.pipe("etc/never"),
    ]
    return entries


def load_order(wanted: list[str], found: dict[str, Path]) -> list[str]:
    """The wanted modules and all they need, each after its needs.

    Raises BuildError if the kernel has no such module.
    """
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name not in found:
            raise BuildError(
                f"the kernel has no module {name}", "build with Debian 12's linux-image-cloud-amd64"
            )
        for need in _needs(found[name].read_bytes()):
            visit(need)
        order.append(name)

    for name in wanted:
        visit(name)
    return order


def _name(file_name: str) -> str:
    """A module's name as the kernel spells it."""
    return file_name.removesuffix(".ko").replace("-", "_")


def _needs(module: bytes) -> list[str]:
    """The modules that a module says it needs, in its ``.modinfo`` section."""
    found = re.search(rb"(?:^|\0)depends=([^\0]*)\0", module)
    if found is None or not found[1]:
        return []
    return [_name(name) for name in found[1].decode().split(",")]
