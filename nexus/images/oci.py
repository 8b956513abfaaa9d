"""A root file system from a container's image: its files, and its program as the guest's service.

skopeo fetches the image and checks the digest of everything it copies; umoci unpacks it, within the
folder whatever links the image holds. What the guest needs is added as a layer of its own, in
``/.nexus``, before unpacking, so that nothing of ours is ever written through a stranger's link.
Source: the OCI image and distribution specifications.
"""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.images import busybox, confined, guestagent, skeleton, tools, workplace
from nexus.images.debs import Packages
from nexus.images.errors import BuildError
from nexus.images.formats import sniff
from nexus.images.intake import DECOMPRESS
from nexus.images.progress import Progress, quiet

TRANSPORTS = ("docker://", "oci:", "oci-archive:", "docker-archive:")
INSECURE = "MANAGER_INSECURE_REGISTRIES"
"""Names registries, ``HOST[:PORT]`` with commas in between, that are spoken to without TLS."""
MOST_BYTES = 64 << 30
"""How large one file of an image may be."""
TIMEOUT_S = 1500.0
MIN_SIZE_MIB = 256
SHELLS = frozenset({"sh", "bash", "ash", "dash", "zsh"})
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FOLDERS = {"proc": 0o755, "sys": 0o755, "dev": 0o755, "run": 0o755, "tmp": 0o1777, "root": 0o700}
"""What the guest needs and an image may lack."""

_OURS = ".nexus"
_SERVICE = Path(skeleton.GUEST) / "service" / "service.c"


@dataclass(frozen=True)
class Service:
    """What an image runs."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    @property
    def is_shell(self) -> bool:
        """Whether it is only a shell, for which the console is there."""
        return not self.args or (len(self.args) == 1 and Path(self.args[0]).name in SHELLS)

    def encoded(self) -> bytes:
        """As ``nexus-service`` reads it: strings that end in NUL."""
        groups = ",".join(str(group) for group in self.groups)
        head = (str(self.uid), str(self.gid), groups, self.cwd, str(len(self.args)))
        return b"".join(text.encode() + b"\0" for text in (*head, *self.args, *self.env))


def build(
    out: Path,
    source: str,
    *,
    packages: Packages,
    size_mib: int | None = None,
    progress: Progress = quiet,
) -> Path:
    """Builds ``rootfs.ext4`` in ``out`` from an image, and returns its path.

    ``source`` names it as skopeo does (``TRANSPORTS``). Without ``size_mib`` the disk is as large
    as the files and a third more. Raises ToolMissing; BuildError if the image cannot be had, is
    damaged, is not for x86-64 Linux, or does not fit.
    """
    for program in ("skopeo", "umoci", "gcc", "mke2fs"):
        tools.find(program)
    if os.geteuid() != 0:
        raise BuildError("an OCI image is unpacked by root only", "run the manager as root")
    with workplace.folder(out) as work:
        progress(0.0, "fetching the image")
        layout = work / "layout"
        fetch(source, layout, work)
        progress(0.4, "adding what a guest needs")
        add_ours(layout, work, packages)
        progress(0.5, "unpacking the layers")
        refuse_bomb(layout, room(work))
        bundle = work / "bundle"
        _run("umoci", "unpack", "--image", f"{layout}:image", str(bundle))
        tree = bundle / "rootfs"
        service = read_service(json.loads((bundle / "config.json").read_bytes()))
        finish(tree, service)
        progress(0.8, "making the file system")
        image = work / "rootfs.ext4"
        busybox.make_ext4(tree, image, fitting(tree, size_mib), alike=False)
        made = out / "rootfs.ext4"
        image.replace(made)
    progress(1.0, "done")
    return made


def fetch(source: str, layout: Path, work: Path) -> None:
    """Copies an image into an OCI layout under the tag ``image``; every digest is checked."""
    policy = work / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    insecure = is_insecure(source, os.environ.get(INSECURE, ""))
    _run(
        *("skopeo", "--policy", str(policy), "--override-os", "linux", "--override-arch", "amd64"),
        *("--tmpdir", str(work), "copy", "--quiet"),
        *(("--src-tls-verify=false",) if insecure else ()),
        *(source, f"oci:{layout}:image"),
    )
    (found,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    manifest = _blob(layout, found["digest"])
    config = _blob(layout, manifest["config"]["digest"])
    platform = f"{config.get('os')}/{config.get('architecture')}"
    if platform != "linux/amd64":
        raise BuildError(f"the image is for {platform}", "give an image for linux/amd64")


def room(work: Path) -> int:
    """How many bytes the layers may hold: what is free, less a tenth; never more than a file."""
    found = os.statvfs(work)
    return min(MOST_BYTES, found.f_bavail * found.f_frsize * 9 // 10)


def refuse_bomb(layout: Path, most_bytes: int) -> None:
    """Raises BuildError if the layers hold more than that, unpacked, before anything is written."""
    (found,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    total = 0
    for layer in _blob(layout, found["digest"])["layers"]:
        algorithm, _, value = layer["digest"].partition(":")
        for size in _unpacked(layout / "blobs" / algorithm / value):
            total += size
            if total > most_bytes:
                raise BuildError(
                    f"the image's layers hold more than {most_bytes >> 20} MiB",
                    "free some space on the manager's disk, or give a smaller image",
                )


def _unpacked(layer: Path) -> Iterator[int]:
    """The sizes of a layer's pieces once it is decompressed."""
    # Without a buffer, so that the program begins where we say.
    with layer.open("rb", buffering=0) as file:
        form = sniff(file.read(16))
        file.seek(0)
        if form not in DECOMPRESS:
            yield layer.stat().st_size
            return
        command = confined.command(*DECOMPRESS[form])
        with subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                while process.stdout is not None and (data := process.stdout.read(1 << 20)):
                    yield len(data)
            finally:
                process.kill()


def is_insecure(source: str, registries: str) -> bool:
    """Whether a source's registry is among those named to be spoken to without TLS."""
    host = source.removeprefix("docker://").partition("/")[0]
    return source.startswith("docker://") and host in registries.replace(" ", "").split(",")


def add_ours(layout: Path, work: Path, packages: Packages) -> None:
    """Adds the guest's own files as layers; umoci resolves their places within the image."""
    ours = work / "ours"
    (ours / "bin").mkdir(parents=True)
    (ours / "sbin").mkdir()
    packages.unpack("busybox-static", work / "packages")
    program = ours / "bin" / "busybox"
    program.write_bytes((work / "packages" / "bin" / "busybox").read_bytes())
    program.chmod(0o755)
    for applet in tools.run([str(program), "--list"]).decode().split():
        if applet != "busybox":
            (ours / "bin" / applet).symlink_to("busybox")
    for name, data in scripts().items():
        path = ours / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755 if data.startswith(b"#!") else 0o644)
    for name in ("poweroff", "reboot", "halt"):
        (ours / "sbin" / name).symlink_to("../power")
    guestagent.build(ours / "bin" / "nexus-guest-agent")
    build_service(ours / "bin" / "nexus-service")
    busybox.reset_times(ours)
    image = f"{layout}:image"
    _run("umoci", "insert", "--image", image, "--opaque", str(ours), f"/{_OURS}")
    _run("umoci", "insert", "--image", image, str(program), "/sbin/init")
    _run("umoci", "insert", "--image", image, str(ours / "inittab"), "/etc/inittab")


def scripts() -> dict[str, bytes]:
    """The guest's scripts by name, taken from other guests and made to live in ``/.nexus``."""
    found = {item.name: item.data for item in skeleton.files("oci") if not item.is_folder}
    shared = {item.name: item.data for item in skeleton.files("busybox")}
    shared |= {item.name: item.data for item in skeleton.files("debian")}
    for name in ("guest-init", "config-drive", "later", "power", "quiesce", "mounts"):
        found[name] = _moved(shared[f"etc/nexus/{name}"])
    found["acpi/PWRF/00000080"] = b"#!/.nexus/bin/sh\nexec /.nexus/sbin/poweroff\n"
    return found


def _moved(script: bytes) -> bytes:
    return (
        script.replace(b"#!/bin/sh", b"#!/.nexus/bin/sh")
        .replace(b"/etc/nexus/", b"/.nexus/")
        .replace(b"PATH=/usr/sbin:/usr/bin:/sbin:/bin", b"PATH=/.nexus/bin:/.nexus/sbin")
    )


def build_service(out: Path) -> None:
    """Compiles the program that becomes the service. Raises ToolMissing or BuildError."""
    tools.run(
        ["gcc", *guestagent.FLAGS, "-o", str(out), str(_SERVICE)],
        suggestion="apt-get install gcc libc6-dev, and check that it compiles for x86-64",
    )
    out.chmod(0o755)


def read_service(config: dict[str, Any]) -> Service:
    """What a runtime configuration says is to be run; umoci has looked its user up in the image."""
    process = config["process"]
    user = process.get("user", {})
    env = {name: value for name, _, value in (v.partition("=") for v in process.get("env", []))}
    env.setdefault("PATH", PATH)
    env.setdefault("HOME", "/root" if user.get("uid", 0) == 0 else "/")
    return Service(
        args=tuple(process.get("args") or ()),
        env=tuple(f"{name}={value}" for name, value in env.items()),
        cwd=process.get("cwd") or "/",
        uid=user.get("uid", 0),
        gid=user.get("gid", 0),
        groups=tuple(user.get("additionalGids") or ()),
    )


def finish(tree: Path, service: Service) -> None:
    """Writes the service's description, and makes the folders that an image may lack."""
    if not service.is_shell:
        folder = os.open(tree / _OURS, os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            file = os.open("service.conf", flags, 0o644, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            os.write(file, service.encoded())
        finally:
            os.close(file)
    for name, mode in FOLDERS.items():
        path = tree / name
        try:
            is_there = stat.S_ISDIR(path.lstat().st_mode)
        except FileNotFoundError:
            path.mkdir()
            path.chmod(mode)
            continue
        if not is_there and name in ("proc", "sys", "dev", "run"):
            raise BuildError(f"/{name} of the image is no folder", "give another image")


def fitting(tree: Path, size_mib: int | None) -> int:
    """The disk's size for a tree. Raises BuildError if it does not fit into ``size_mib``."""
    used = inodes = 0
    for folder, _, names in os.walk(tree):
        for name in (".", *names):
            used += os.lstat(os.path.join(folder, name)).st_blocks * 512  # noqa: PTH118 # hot
            inodes += 1
    needed = ((used + inodes * 512) >> 20) * 5 // 4 + 32
    if size_mib is None:
        return max(MIN_SIZE_MIB, needed * 4 // 3)
    if needed > size_mib:
        raise BuildError(
            f"the image's files need {needed} MiB, the disk has {size_mib}",
            f"build it with a size of {needed * 4 // 3} MiB",
        )
    return size_mib


def _blob(layout: Path, digest: str) -> Any:
    algorithm, _, value = digest.partition(":")
    return json.loads((layout / "blobs" / algorithm / value).read_bytes())


def _run(*command: str) -> None:
    tools.run(
        confined.command(*command, file_bytes=MOST_BYTES, memory_bytes=None),
        timeout_s=TIMEOUT_S,
        suggestion="check the image's name, that its registry can be reached, and that it is whole",
    )
