"""A Debian root file system with systemd, ssh, the guest's agent and packages of one's choice.

mmdebstrap unpacks Debian's packages into a folder, with the machine's own sources; our files are
laid over it, and mke2fs makes a disk of it. No disk is mounted. Maintainer scripts run in a chroot,
so it takes root. There is neither udev nor D-Bus nor a login manager in it, unless a package wants
them: a microVM boots without, and sooner.
"""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from nexus.images import busybox, guestagent, skeleton, sources, tools, workplace
from nexus.images.errors import BuildError
from nexus.images.progress import Progress, quiet

PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")
"""A Debian package's name (Debian policy 5.6.1)."""
MAX_PACKAGES = 200
SIZE_MIB = 1024
MIN_SIZE_MIB = 384
MAX_SIZE_MIB = 1 << 20
SPARE = 1.15
"""How much larger than its files a file system must be at least."""

PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "netbase",
    "openssh-server",
    "procps",
    "systemd-sysv",
)
LEFT_OUT = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
)
"""What dpkg does not unpack, now and later in the guest."""

_SYSTEM = "etc/systemd/system"
LINKS = {
    "etc/resolv.conf": "/run/resolv.conf",
    f"{_SYSTEM}/default.target": "/usr/lib/systemd/system/multi-user.target",
    f"{_SYSTEM}/ctrl-alt-del.target": "/usr/lib/systemd/system/reboot.target",
    f"{_SYSTEM}/sysinit.target.wants/nexus-guest.service": f"/{_SYSTEM}/nexus-guest.service",
    **{
        f"{_SYSTEM}/multi-user.target.wants/nexus-{name}.service": (
            f"/{_SYSTEM}/nexus-{name}.service"
        )
        for name in ("agent", "console", "later", "power")
    },
    **{
        f"{_SYSTEM}/{unit}": "/dev/null"
        for unit in (
            "apt-daily-upgrade.timer",
            "apt-daily.timer",
            "dpkg-db-backup.timer",
            "e2scrub_all.timer",
            "e2scrub_reap.service",
            "fstrim.timer",
            "getty-static.service",
            "getty@tty1.service",
            "serial-getty@ttyS0.service",
            "systemd-firstboot.service",
            "systemd-pcrphase-sysinit.service",
            "systemd-pcrphase.service",
            "systemd-update-utmp-runlevel.service",
        )
    },
}
"""Symbolic links laid over Debian's files: what is started, and what is not."""

OF_THIS_MACHINE = (
    "etc/hostname",
    "etc/machine-id",
    "etc/ssh/ssh_host_*",
    "var/cache/apt/*.bin",
    "var/cache/ldconfig/*",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/log/*.log",
    "var/log/apt/*",
)
"""What must differ between guests, or would differ between builds."""


def build(
    out: Path,
    *,
    packages: Sequence[str] = (),
    size_mib: int = SIZE_MIB,
    progress: Progress = quiet,
) -> Path:
    """Builds ``rootfs.ext4`` in ``out``, a sparse file of ``size_mib``, and returns its path.

    ``packages`` are installed beside our own. Raises ToolMissing; BuildError if this machine is no
    Debian, a package is not known, or the files do not fit.
    """
    check(packages, size_mib)
    tools.find("mke2fs")
    tools.find("mmdebstrap")
    if os.geteuid() != 0:
        raise BuildError("a Debian root is built by root only", "run the manager as root")
    with workplace.folder(out) as work:
        progress(0.0, "fetching and unpacking Debian's packages")
        tree = work / "tree"
        bootstrap(tree, packages)
        progress(0.7, "laying out the guest's own files")
        lay_over(tree)
        guestagent.build(tree / guestagent.NAME)
        busybox.reset_times(tree)
        progress(0.8, "making the file system")
        refuse_overfull(tree, size_mib)
        image = work / "rootfs.ext4"
        busybox.make_ext4(tree, image, size_mib)
        made = out / "rootfs.ext4"
        image.replace(made)
    progress(1.0, "done")
    return made


def check(packages: Sequence[str], size_mib: int) -> None:
    """Raises BuildError for what can be no package's name, or a size that makes no sense."""
    for name in packages:
        if not PACKAGE.fullmatch(name):
            raise BuildError(f"{name[:100]!r} is no package's name", "apt-cache search WORD")
    if len(packages) > MAX_PACKAGES:
        raise BuildError(f"{len(packages)} packages; {MAX_PACKAGES} is most", "choose fewer")
    if not MIN_SIZE_MIB <= size_mib <= MAX_SIZE_MIB:
        raise BuildError(
            f"{size_mib} MiB is no size for a Debian root", f"give {MIN_SIZE_MIB} MiB or more"
        )


def bootstrap(tree: Path, packages: Sequence[str]) -> None:
    """Unpacks and configures Debian's packages under ``tree``."""
    chosen = ",".join(dict.fromkeys((*PACKAGES, *packages)))
    tools.run(
        [
            *("mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase"),
            *("--skip=output/dev", f"--include={chosen}"),
            *(f"--dpkgopt={option}" for option in LEFT_OUT),
            *("--aptopt=Acquire::Retries 3", "--aptopt=APT::Install-Recommends false"),
            *(sources.codename(), str(tree), *sources.lines()),
        ],
        # One time for all files, so that two builds from the same packages are alike.
        environment={**os.environ, "SOURCE_DATE_EPOCH": "1"},
        timeout_s=1800,
        suggestion="check the packages' names, the network and this machine's package sources",
    )


def lay_over(tree: Path) -> None:
    """Puts the guest's own files and links over Debian's, and takes out what is of this machine."""
    for pattern in OF_THIS_MACHINE:
        for path in tree.glob(pattern):
            path.unlink()
    for item in skeleton.files("debian"):
        path = tree / item.name
        if item.is_folder:
            path.mkdir(exist_ok=True)
        else:
            path.unlink(missing_ok=True)
            path.write_bytes(item.data)
            path.chmod(item.permissions)
    for name, target in LINKS.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    # Empty: systemd makes one on the first boot. Missing, it would take each boot for the first.
    (tree / "etc/machine-id").write_text("")
    # As old as /usr: nothing needs to be brought up to date on the first boot.
    for folder in ("etc", "var"):
        (tree / folder / ".updated").write_text("")


def refuse_overfull(tree: Path, size_mib: int) -> None:
    """Raises BuildError if the files cannot fit into ``size_mib``."""
    used = sum(path.lstat().st_blocks * 512 for path in tree.rglob("*"))
    needed = int(used * SPARE) >> 20
    if needed > size_mib:
        shutil.rmtree(tree, ignore_errors=True)
        raise BuildError(
            f"the packages need {needed} MiB, the disk has {size_mib}",
            f"build it with a size of {needed * 2} MiB",
        )
