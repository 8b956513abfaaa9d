"""A snapshot's row as the API shows it."""

from nexus.api.vm_snapshots import Snapshot, SnapshotContent
from nexus.api.vms import VmImage
from nexus.manager.db.columns import StoredImage
from nexus.manager.db.snapshot_tables import SnapshotRow


def to_snapshot(row: SnapshotRow) -> Snapshot:
    held, blueprint = row.held, row.blueprint
    return Snapshot(
        id=row.id,
        name=row.name,
        project=row.project,
        state=row.state,
        error=row.error,
        vm_id=row.vm_id,
        vm_name=row.vm_name,
        host_id=row.host_id,
        engine=row.engine,
        kind=row.kind,
        parent_id=row.parent_id,
        needs_parent=row.needs_parent,
        scheduled=row.scheduled,
        vcpu=blueprint.vcpu,
        mem_mib=blueprint.mem_mib,
        kernel=_image(blueprint.kernel),
        rootfs=_image(blueprint.rootfs) if blueprint.rootfs else None,
        vmm_version=held.vmm_version if held else None,
        cpu_template=held.cpu_template if held else None,
        cpu=held.cpu if held else None,
        files=[
            SnapshotContent(
                name=file.name,
                size_bytes=file.size_bytes,
                disk_bytes=file.disk_bytes,
                sha256=file.sha256,
            )
            for file in (held.files if held else ())
        ],
        size_bytes=held.size_bytes if held else None,
        disk_bytes=held.disk_bytes if held else None,
        pause_ms=held.pause_ms if held else None,
        taken_at=held.taken_at if held else None,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _image(image: StoredImage) -> VmImage:
    return VmImage(id=image.id, kind=image.kind, name=image.name, sha256=image.sha256)
