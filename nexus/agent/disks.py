"""The files a VMM needs in its root: disk, kernel, initrd, config drive, config file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nexus.agent.atomic import write_atomically
from nexus.agent.drives import (
    begin_volume,
    ensure_drive,
    ensure_root,
    ensure_volume,
    grow_file,
    link,
    own,
    shed,
)
from nexus.agent.errors import StageFailed, disk_failure
from nexus.agent.layout import (
    CAPTURED_MEMORY,
    CAPTURED_STATE,
    CONFIG_DRIVE,
    INITRD,
    KERNEL,
    ROOTFS,
    SNAPSHOT_MEMORY,
    SNAPSHOT_STATE,
    VmPaths,
    drive_file,
)
from nexus.agent.nofollow import opened
from nexus.agent.vmm_config import encode, needs_config_drive
from nexus.api.images import ImageKind
from nexus.api.machines import Blob, Machine
from nexus.images import configdrive, workplace
from nexus.images.errors import ImageError
from nexus.images.store import Store

_JAIL_LEFTOVERS = ("dev", "run", "firecracker", "firecracker.pid")
"""What the jailer makes and refuses to find again."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def ensure_folder(paths: VmPaths) -> None:
    """The VM's directory with its console."""
    paths.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths.dir.chmod(0o700)
    if not paths.console_in.exists():
        os.mkfifo(paths.console_in, 0o600)
    os.close(os.open(paths.console_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))


def ensure_files(
    machine: Machine,
    paths: VmPaths,
    store: Store,
    owner: int | None,
    *,
    new_root: bool = False,
) -> None:
    """All files of the VM, which does not run. Its disks are made once and kept, and grow; the
    rest follows what is wanted now. With ``new_root`` the root disk is made once more.

    Every file appears whole under its name or not at all. Blocks for the time of a clone. Raises
    StageFailed("disk").
    """
    with _told_as_disk_failure(paths):
        ensure_folder(paths)
        workplace.clear(paths.root)
        with _of_image("kernel", store, machine.kernel):
            link(store, machine.kernel, paths.root / KERNEL)
        if machine.initrd is not None:
            with _of_image("initrd", store, machine.initrd):
                link(store, machine.initrd, paths.root / INITRD)
        if machine.rootfs is not None:
            with _of_image("rootfs", store, machine.rootfs):
                size_mib = machine.rootfs_size_mib
                ensure_root(machine.rootfs, size_mib, paths.root, store, owner, anew=new_root)
        shed(paths.root, [drive.name for drive in machine.drives])
        for drive in machine.drives:
            with _of_image("rootfs", store, drive.blob):
                if drive.volume is not None:
                    file = paths.volume(drive.volume)
                    begin_volume(drive, file, store)
                    ensure_volume(drive, file, paths.root, owner)
                else:
                    ensure_drive(drive, paths.root, store, owner)
        if needs_config_drive(machine):
            fresh = paths.root / f".{CONFIG_DRIVE}.new"
            configdrive.write(
                fresh,
                instance_id=machine.id,
                hostname=machine.name,
                ssh_keys=list(machine.ssh_keys),
                user_data=machine.user_data,
                vendor_data=machine.vendor_data,
                nics=[
                    configdrive.Nic(nic.iface, nic.mac, nic.ip, nic.gateway, nic.dns)
                    for nic in machine.nics
                ],
            )
            own(fresh, owner)
            fresh.replace(paths.root / CONFIG_DRIVE)
        write_atomically(paths.vmm_config, encode(machine))
        own(paths.vmm_config, owner)


def grow(machine: Machine, paths: VmPaths) -> None:
    """Makes the disks of a VM that runs as large as they are wanted; none becomes smaller.

    The VMM has to look again at what has grown. Raises StageFailed("disk").
    """
    with _told_as_disk_failure(paths):
        if machine.rootfs is not None:
            grow_file(paths.root / ROOTFS, machine.rootfs_size_mib)
        for drive in machine.drives:
            grow_file(paths.root / drive_file(drive.name), drive.size_mib)


def shed_drives(machine: Machine, paths: VmPaths) -> None:
    """Lets go of drives that the VM, which does not run, shall not have any more.

    Raises StageFailed("disk").
    """
    with _told_as_disk_failure(paths):
        shed(paths.root, [drive.name for drive in machine.drives])


@contextmanager
def _told_as_disk_failure(paths: VmPaths) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise StageFailed("disk", str(error), suggestion=error.suggestion) from error
    except OSError as error:
        raise disk_failure(error, paths.root) from error
    finally:
        for half in paths.root.glob(".*.new"):
            half.unlink(missing_ok=True)


@contextmanager
def _of_image(kind: ImageKind, store: Store, blob: Blob | None) -> Iterator[None]:
    """Says which image it is that the store does not have."""
    try:
        yield
    except ImageError as error:
        if blob is None or store.has(blob.sha256):
            raise
        raise StageFailed(
            "disk",
            f"the {kind} image is not on this host: {error}",
            suggestion=f"register it again under any name (nexus image add {kind} NAME FILE), "
            "or build it again (nexus image build)",
        ) from error


def before_boot(paths: VmPaths, owner: int | None) -> None:
    """Clears what an earlier VMM left: its sockets, its log, the inside of its jail.

    Raises StageFailed("disk").
    """
    with _told_as_disk_failure(paths):
        paths.socket.unlink(missing_ok=True)
        paths.vsock.unlink(missing_ok=True)
        if not _is_untouched(paths.vmm_log):
            paths.vmm_log.unlink(missing_ok=True)
            os.close(os.open(paths.vmm_log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        own(paths.vmm_log, owner)
        if owner is not None:
            clear_jail(paths.root)
            own(paths.root, owner)


def _is_untouched(log: Path) -> bool:
    """Whether a log is there that nobody has written to."""
    try:
        with opened(log) as descriptor:
            seen = os.fstat(descriptor)
    except OSError:
        return False
    return seen.st_size == 0 and seen.st_nlink == 1


def before_load(paths: VmPaths, owner: int | None) -> None:
    """The VM's directory as a VMM wants to find it that is to load a snapshot.

    Raises StageFailed("disk").
    """
    with _told_as_disk_failure(paths):
        ensure_folder(paths)
    before_boot(paths, owner)


def after_exit(paths: VmPaths) -> None:
    """Clears what a VMM that ended leaves; disk, logs and config stay."""
    paths.socket.unlink(missing_ok=True)
    paths.vsock.unlink(missing_ok=True)
    for name in (SNAPSHOT_MEMORY, SNAPSHOT_STATE):
        (paths.root / name).unlink(missing_ok=True)
    clear_captured(paths)
    if paths.jailed:
        clear_jail(paths.root)


def clear_captured(paths: VmPaths) -> None:
    """Removes what a capture that was cut off left in the VM's root."""
    for name in (CAPTURED_MEMORY, CAPTURED_STATE):
        remove_tree(paths.root / name)


def clear_jail(root: Path) -> None:
    for name in _JAIL_LEFTOVERS:
        remove_tree(root / name)


def remove_tree(path: Path) -> None:
    """Deletes a tree without following links out of it, also when a hostile VMM puts one in the
    place of a folder meanwhile. Deleting what is not there is no error."""
    _remove(path, None)


def _remove(name: Path | str, parent: int | None) -> None:
    """``parent`` is the opened folder that ``name`` is in."""
    try:
        folder = os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        return
    try:
        for entry in os.listdir(folder):  # noqa: PTH208 - of a descriptor
            _remove(entry, folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=parent)
