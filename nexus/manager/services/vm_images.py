"""Which images a VM boots: the ones asked for, or the defaults."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import BindParameter, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import ImageNotReady
from nexus.api.images import ImageKind
from nexus.api.vms import VmSpec
from nexus.manager.db.columns import StoredImage
from nexus.manager.db.tables import ImageRow

DEFAULT_KERNEL = "debian-cloud"
DEFAULT_ROOTFS = "busybox"


_REFS: BindParameter[str] = bindparam("refs", expanding=True)
_ASKED_FOR = (
    select(ImageRow)
    .where(
        ImageRow.project == bindparam("project"),
        or_(ImageRow.id.in_(_REFS), ImageRow.name.in_(_REFS)),
    )
    # Locked, so that none is deleted between this look and the VM's row.
    .with_for_update(read=True, key_share=True)
)


@dataclass(frozen=True, slots=True)
class VmImages:
    """What a VM boots."""

    kernel: StoredImage
    initrd: StoredImage | None
    rootfs: StoredImage | None
    drives: dict[str, StoredImage]
    """By the names of the drives that begin as a copy of one."""


async def choose(session: AsyncSession, project: str, request: VmSpec) -> VmImages:
    """The images of a request, each by id or name.

    Without a kernel: the default one; the initrd named like the kernel, if there is one; and
    without kernel and rootfs: the default rootfs. Raises ImageNotReady for one that is not there.
    """
    kernel_ref = request.kernel or DEFAULT_KERNEL
    rootfs_ref = request.rootfs or (None if request.kernel else DEFAULT_ROOTFS)
    drive_refs = {drive.name: drive.image for drive in request.drives if drive.image is not None}
    wanted = [ref for ref in (kernel_ref, request.initrd, rootfs_ref) if ref]
    wanted += drive_refs.values()
    found = await _look_up(session, project, wanted)
    kernel = _pick(found, "kernel", kernel_ref, is_default=request.kernel is None)
    initrd: ImageRow | None
    if request.initrd:
        initrd = _pick(found, "initrd", request.initrd, is_default=False)
    elif kernel.name in wanted:
        initrd = _named(found, "initrd", kernel.name)
    else:
        initrd = _named(await _look_up(session, project, [kernel.name]), "initrd", kernel.name)
    rootfs = (
        _pick(found, "rootfs", rootfs_ref, is_default=request.rootfs is None)
        if rootfs_ref
        else None
    )
    return VmImages(
        kernel=_stored(kernel),
        initrd=_stored(initrd) if initrd else None,
        rootfs=_stored(rootfs) if rootfs else None,
        drives={
            name: _stored(_pick(found, "rootfs", ref, is_default=False))
            for name, ref in drive_refs.items()
        },
    )


async def choose_over(
    session: AsyncSession, project: str, request: VmSpec, held: VmImages, anew: Collection[str]
) -> VmImages:
    """The images of a request for which ``held`` were chosen before: those that the fields of
    ``anew`` name are looked up, the others stay, also when their names mean something else by now.

    Raises ImageNotReady.
    """
    kernel = held.kernel
    if "kernel" in anew:
        ref = request.kernel or DEFAULT_KERNEL
        kernel = await _find(session, project, "kernel", ref, is_default=request.kernel is None)
    initrd = held.initrd
    if request.initrd is None:
        if "kernel" in anew or "initrd" in anew:
            found = await _look_up(session, project, [kernel.name])
            row = _named(found, "initrd", kernel.name)
            initrd = _stored(row) if row else None
    elif "initrd" in anew:
        initrd = await _find(session, project, "initrd", request.initrd)
    rootfs = held.rootfs
    if "rootfs" in anew:
        rootfs_ref = request.rootfs or (None if request.kernel else DEFAULT_ROOTFS)
        is_default = request.rootfs is None
        rootfs = (
            await _find(session, project, "rootfs", rootfs_ref, is_default=is_default)
            if rootfs_ref
            else None
        )
    drives = held.drives
    if "drives" in anew:
        drives = {
            drive.name: await _find(session, project, "rootfs", drive.image)
            for drive in request.drives
            if drive.image is not None
        }
    return VmImages(kernel=kernel, initrd=initrd, rootfs=rootfs, drives=drives)


async def _find(
    session: AsyncSession, project: str, kind: ImageKind, ref: str, *, is_default: bool = False
) -> StoredImage:
    found = await _look_up(session, project, [ref])
    return _stored(_pick(found, kind, ref, is_default=is_default))


async def rootfs_of(session: AsyncSession, project: str, ref: str) -> StoredImage:
    """A root file system image by id or name, locked. Raises ImageNotReady."""
    return await _find(session, project, "rootfs", ref)


async def _look_up(session: AsyncSession, project: str, refs: Sequence[str]) -> Sequence[ImageRow]:
    return (await session.scalars(_ASKED_FOR, {"project": project, "refs": refs})).all()


def _named(found: Sequence[ImageRow], kind: ImageKind, ref: str) -> ImageRow | None:
    """The image with this id, else the one with this name."""
    matching = [row for row in found if row.kind == kind and ref in (row.id, row.name)]
    return min(matching, key=lambda row: row.id != ref, default=None)


def _pick(found: Sequence[ImageRow], kind: ImageKind, ref: str, *, is_default: bool) -> ImageRow:
    row = _named(found, kind, ref)
    if row is None:
        raise ImageNotReady(
            f"the default {kind} {ref!r} is not there yet"
            if is_default
            else f"there is no {kind} {ref!r}",
            suggestion=f"nexus image build {ref}" if is_default else "nexus image ls",
        )
    return row


def _stored(row: ImageRow) -> StoredImage:
    return StoredImage(
        id=row.id, kind=row.kind, name=row.name, sha256=row.sha256, size_bytes=row.size_bytes
    )
