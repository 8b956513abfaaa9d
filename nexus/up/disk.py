"""``nexus host init``: a file system that shares blocks, in a file, for the VMs and images of a
host whose own file system cannot. See docs/storage.md.

``disk.xfs`` in the data folder is that file system, mounted at ``disk``; what lies in it is what
counts from the moment at which the file has this name. Until then it is ``disk.xfs.new``, which a
crash leaves for the next run to throw away.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nexus.api.errors import BadRequest, Conflict, NoCapacity, NotFound
from nexus.up import reflink
from nexus.up.place import MOVED, Place

MIB = 1 << 20
LEAST_MIB = 512
"""mkfs.xfs refuses less than 300 MiB, and nobody wants so little."""
SHARE_OF_FREE = 0.75
"""So much of what is free it takes unless told otherwise; it takes it only as it is used."""
MOUNT_TIMEOUT_S = 60
MOVE_TIMEOUT_S = 3600


@dataclass(frozen=True)
class HostDisk:
    """What ``init`` found or made."""

    made: bool
    file: str | None
    """None where the data folder's own file system shares blocks."""
    mounted_at: str | None
    size_mib: int | None
    measured_mib: int
    clone_before_ms: float | None
    """None for what was not measured."""
    clone_after_ms: float | None


def init(place: Place, size_mib: int | None, measure_mib: int) -> HostDisk:
    """Makes the file system and moves images and VMs into it. Run twice it changes nothing.

    Raises Conflict while anything of the installation runs, BadRequest, or NoCapacity.
    """
    _check_root()
    _check_folders(place)
    place.data.mkdir(parents=True, exist_ok=True)
    with _at_rest(place):
        if place.disk_file.exists():
            mount(place)
            _forget_old(place)
            after = _measured(place.disk, measure_mib)
            return _facts(place, made=False, measured=measure_mib, before=None, after=after)
        if reflink.can_share(place.data):
            after = _measured(place.data, measure_mib)
            return HostDisk(False, None, None, None, measure_mib, None, after)
        if shutil.which("mkfs.xfs") is None:
            raise BadRequest(
                "mkfs.xfs is not installed", suggestion="apt-get install xfsprogs, then try again"
            )
        size_mib = _size(place, size_mib)
        before = _measured(place.data, measure_mib)
        _make(place, size_mib)
        after = _measured(place.disk, measure_mib)
        return _facts(place, made=True, measured=measure_mib, before=before, after=after)


def undo(place: Place) -> None:
    """Moves images and VMs back to the data folder and removes the file system.

    Raises NotFound, NoCapacity, or Conflict while anything of the installation runs.
    """
    _check_root()
    if not place.disk_file.exists() and not place.new_disk_file.exists():
        raise NotFound(
            f"there is no disk of nexus host init in {place.data}",
            suggestion="nexus host init --undo --data DIR, with the DIR it was made in",
        )
    with _at_rest(place):
        if place.disk_file.exists():
            mount(place)
            used = _allocated(place.disk)
            free = _free(place.data)
            if used > free:
                raise NoCapacity(
                    f"images and VMs take {used // MIB} MiB without shared blocks, and "
                    f"{free // MIB} MiB are free in {place.data}",
                    suggestion="delete VMs first: nexus ls",
                )
            _move(place.disk, place.data)
        remove(place)


def mount(place: Place) -> None:
    """Mounts the file system if there is one; a reboot has undone that. Raises Conflict."""
    if place.disk_file.exists() and not os.path.ismount(place.disk):
        _mount(place, place.disk_file)


def remove(place: Place) -> None:
    """Unmounts the file system and removes it with all that is in it. Raises Conflict."""
    while os.path.ismount(place.disk):
        _run(["umount", str(place.disk)], f"look what uses it: fuser -vm {place.disk}")
    # Beforehand, so that a crash in between leaves no mount point that looks like a folder of ours.
    place.disk_file.unlink(missing_ok=True)
    place.new_disk_file.unlink(missing_ok=True)
    if place.disk.is_dir():
        place.disk.rmdir()


def _make(place: Place, size_mib: int) -> None:
    while os.path.ismount(place.disk):  # of a run that was cut off
        _run(["umount", str(place.disk)], f"look what uses it: fuser -vm {place.disk}")
    fresh = place.new_disk_file
    fresh.unlink(missing_ok=True)
    with fresh.open("xb") as file:
        file.truncate(size_mib * MIB)
    fresh.chmod(0o600)
    try:
        _run(["mkfs.xfs", "-q", "-m", "reflink=1", str(fresh)], "look at what mkfs.xfs says")
        _mount(place, fresh)
        _move(place.data, place.disk)
    except BaseException:
        remove(place)
        raise
    fresh.rename(place.disk_file)
    _forget_old(place)


def _forget_old(place: Place) -> None:
    """What has been moved. Not before the new file system has its name."""
    for name in MOVED:
        shutil.rmtree(place.data / name, ignore_errors=True)


def _mount(place: Place, file: Path) -> None:
    place.disk.mkdir(mode=0o711, exist_ok=True)
    # discard: what is deleted in there becomes free out here as well.
    cure = "look at the kernel's log: dmesg"
    _run(["mount", "-t", "xfs", "-o", "loop,discard", str(file), str(place.disk)], cure)
    place.disk.chmod(0o711)


def _move(source: Path, target: Path) -> None:
    """Copies the folders of images and VMs with their links, modes and holes, whole or not at all.

    In one go, because the VMs have hard links to images.
    """
    moving = target / ".moving"
    shutil.rmtree(moving, ignore_errors=True)
    moving.mkdir(mode=0o700)
    there = [str(source / name) for name in MOVED if (source / name).is_dir()]
    if there:
        command = ["cp", "-a", "--sparse=always", "--reflink=auto", "-t", str(moving), *there]
        _run(command, f"free space in {target}: df -h {target}", timeout_s=MOVE_TIMEOUT_S)
    for name in MOVED:
        shutil.rmtree(target / name, ignore_errors=True)
        if (moving / name).is_dir():
            (moving / name).rename(target / name)
    moving.rmdir()
    _run(["sync", "-f", str(target)], "look at the kernel's log: dmesg", timeout_s=MOVE_TIMEOUT_S)


@contextmanager
def _at_rest(place: Place) -> Iterator[None]:
    """Holds the installation's lock. Raises Conflict while services or VMs run."""
    with place.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"the installation in {place.data} is running",
                suggestion="stop it first: Ctrl-C at nexus up",
            ) from None
        busy = [pid for folder in (place.data, place.disk) for pid in _working_in(folder / "fc")]
        if busy:
            raise Conflict(
                f"VMs run in {place.data} (pid {', '.join(map(str, busy[:3]))})",
                suggestion="stop them all first: nexus stop NAME, then Ctrl-C at nexus up",
            )
        try:
            yield
        finally:
            if not place.settings_file.exists():
                place.lock.unlink(missing_ok=True)  # There is no installation yet.


def _working_in(folder: Path) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink().is_relative_to(folder):
                    yield int(entry.name)
            except OSError:
                continue


def _check_root() -> None:
    if os.geteuid() != 0:
        raise BadRequest("mounting a file system takes root", suggestion="sudo nexus host init")


def _check_folders(place: Place) -> None:
    environment = place.environment()
    for name in ("NEXUS_STORE_DIR", "FC_RUN_DIR"):
        if not Path(environment[name]).is_relative_to(place.data):
            raise BadRequest(
                f"{name} is set to a folder outside of {place.data}",
                suggestion=f"put that on a file system with reflink yourself, or unset {name}",
            )


def _size(place: Place, size_mib: int | None) -> int:
    free_mib = _free(place.data) // MIB
    if size_mib is None:
        size_mib = int(free_mib * SHARE_OF_FREE)
    if size_mib < LEAST_MIB:
        raise BadRequest(
            f"{size_mib} MiB are too few for images and VMs",
            suggestion=f"give at least {LEAST_MIB} MiB: nexus host init --size 100G",
        )
    if size_mib > free_mib:
        raise NoCapacity(
            f"a file of {size_mib} MiB could come to take more than the {free_mib} MiB that are "
            f"free in {place.data}",
            suggestion="choose a smaller --size",
        )
    return size_mib


def _measured(folder: Path, measure_mib: int) -> float | None:
    """None where there is no room for it, or it was not wanted."""
    copies = 1 if reflink.can_share(folder) else 2
    if measure_mib == 0 or (copies + 1) * measure_mib * MIB > _free(folder):
        return None
    return round(reflink.clone_ms(folder, measure_mib), 2)


def _free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _allocated(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            total += os.lstat(os.path.join(root, name)).st_blocks * 512  # noqa: PTH118
    return total


def _facts(
    place: Place, *, made: bool, measured: int, before: float | None, after: float | None
) -> HostDisk:
    return HostDisk(
        made=made,
        file=str(place.disk_file),
        mounted_at=str(place.disk),
        size_mib=place.disk_file.stat().st_size // MIB,
        measured_mib=measured,
        clone_before_ms=before,
        clone_after_ms=after,
    )


def _run(command: list[str], cure: str, *, timeout_s: float = MOUNT_TIMEOUT_S) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip()[-500:] or f"exit status {done.returncode}"
        raise Conflict(f"{command[0]}: {said}", suggestion=cure)
