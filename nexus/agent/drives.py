"""The files under a VM's drives: made once, kept, and grown."""

import os
from collections.abc import Iterable
from pathlib import Path

import structlog

from nexus.agent import snapshot_files
from nexus.agent.layout import ROOTFS, drive_file
from nexus.agent.nofollow import opened
from nexus.api.machines import Blob, MachineDrive
from nexus.images import ext4, sparse
from nexus.images.errors import ImageError
from nexus.images.store import Store

MIB = 1 << 20

log = structlog.get_logger("drives")


def ensure_root(
    blob: Blob,
    size_mib: int | None,
    root: Path,
    store: Store,
    owner: int | None,
    *,
    anew: bool = False,
) -> None:
    """The root disk, and its file system as large as the disk is wanted. ``anew`` puts a fresh one
    in the place of the one that is there.

    It is grown beside the disk and put in its place whole, so it may be cut off at any moment.
    Raises ImageError or OSError.
    """
    target = root / ROOTFS
    if anew or not target.exists():
        fresh = _fresh(target)
        store.clone(blob.sha256, fresh)
        if size_mib is not None:
            grow_file(fresh, size_mib)
            ext4.grow(fresh)
        _keep(fresh, target, owner)
    elif size_mib is not None and not ext4.fills(target, size_mib * MIB):
        fresh = _fresh(target)
        snapshot_files.clone(target, fresh)
        grow_file(fresh, size_mib)
        try:
            ext4.grow(fresh)
        except ImageError as error:
            # It is the guest's by now, and the guest can mend and grow it better than we.
            log.warning("a root file system stays as large as it is", error=str(error))
            fresh.unlink()
        else:
            _keep(fresh, target, owner)
    grow_file(target, size_mib)


def ensure_drive(drive: MachineDrive, root: Path, store: Store, owner: int | None) -> None:
    """A drive beside the root disk. Raises ImageError or OSError."""
    target = root / drive_file(drive.name)
    if drive.blob is not None and drive.read_only:
        link(store, drive.blob, target)
        return
    if not target.exists():
        fresh = _fresh(target)
        if drive.blob is not None:
            store.clone(drive.blob.sha256, fresh)
        else:
            fresh.touch(exist_ok=False)
        grow_file(fresh, drive.size_mib)
        _keep(fresh, target, owner)
    grow_file(target, drive.size_mib)


def begin_volume(drive: MachineDrive, file: Path, store: Store) -> None:
    """The file of a volume that begins as an image. Raises ImageError or OSError."""
    if drive.blob is not None and not file.exists():
        fresh = _fresh(file)
        store.clone(drive.blob.sha256, fresh)
        grow_file(fresh, drive.size_mib)
        _keep(fresh, file, None)


def ensure_volume(drive: MachineDrive, file: Path, root: Path, owner: int | None) -> None:
    """A drive that is a volume: its file, made when it is first used, under a second name in the
    VM's root. Only that name goes with the VM. Raises OSError."""
    if not file.exists():
        fresh = _fresh(file)
        fresh.touch(exist_ok=False)
        grow_file(fresh, drive.size_mib)
        _keep(fresh, file, owner)
    grow_file(file, drive.size_mib)
    own(file, owner)  # The VM before may have been another user's.
    target = root / drive_file(drive.name)
    if not target.exists() or not target.samefile(file):
        fresh = _fresh(target)
        os.link(file, fresh)
        fresh.replace(target)


def copy_volume(source: Path, copy: Path) -> None:
    """A volume as another one is: shared blocks where the file system can, else without holes.

    Whole under its name or not at all. Raises OSError.
    """
    fresh = _fresh(copy)
    try:
        sparse.clone_file(source, fresh)
        _keep(fresh, copy, None)
    finally:
        fresh.unlink(missing_ok=True)


def shed(root: Path, wanted: Iterable[str]) -> None:
    """Takes away the files of drives that are no longer wanted; a volume keeps its own name."""
    kept = {drive_file(name) for name in wanted}
    for file in root.glob("drive-*.img"):
        if file.name not in kept:
            file.unlink()


def remove_volume(file: Path) -> None:
    """Deletes a volume's file, or what was left half made of it."""
    _fresh(file)
    file.unlink(missing_ok=True)


def grow_file(file: Path, size_mib: int | None) -> None:
    """Never makes it smaller. Holes cost nothing: a disk takes space as its guest writes.

    It may lie where a hostile VMM writes: a link is not followed. Raises OSError.
    """
    if size_mib is None:
        return
    with opened(file, os.O_RDWR) as disk:
        if os.fstat(disk).st_size < size_mib * MIB:
            os.ftruncate(disk, size_mib * MIB)


def link(store: Store, blob: Blob, target: Path) -> None:
    """Content of the store that is only read."""
    fresh = _fresh(target)
    store.link(blob.sha256, fresh)
    fresh.replace(target)


def own(path: Path, owner: int | None) -> None:
    """Gives a file to the user of a jail, if there is one; never what a link leads to."""
    if owner is not None:
        os.chown(path, owner, owner, follow_symlinks=False)


def make_private(disk: Path, owner: int | None) -> None:
    """A disk is its VMM's alone. Raises OSError."""
    with opened(disk) as file:
        os.fchmod(file, 0o600)
        if owner is not None:
            os.fchown(file, owner, owner)


def _fresh(target: Path) -> Path:
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    return fresh


def _keep(fresh: Path, target: Path, owner: int | None) -> None:
    make_private(fresh, owner)
    fresh.replace(target)
