"""What things take on this host's disks. Asked now and then, because it looks at every file."""

import os
import stat
from pathlib import Path

from nexus.agent.layout import Layout, is_vm_id
from nexus.api.usage import Measured
from nexus.images import sparse
from nexus.images.store import Store


def measure(layout: Layout, store: Store) -> Measured:
    """Looks at everything. Blocks for some 20 µs for each file."""
    held = store.held()
    return Measured(
        vms={vm_id: _own_bytes(layout.vm(vm_id).dir) for vm_id in layout.vm_ids()},
        volumes=_volumes(layout.volumes_dir),
        snapshots={each: _bytes(layout.snapshots_dir / each) for each in layout.snapshot_ids()},
        images_bytes=sum(blob.disk_bytes for blob in held),
        images_size_bytes=sum(blob.size_bytes for blob in held),
    )


def _own_bytes(folder: Path) -> int:
    """Of a VM: what has a second name is a volume, a snapshot's or the store's."""
    return _bytes(folder, own=True)


def _bytes(folder: Path, *, own: bool = False) -> int:
    total = 0
    try:
        entries = list(os.scandir(folder))
    except OSError:  # It went while we looked.
        return 0
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                total += _bytes(Path(entry.path), own=own)
                continue
            seen = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(seen.st_mode) and not (own and seen.st_nlink > 1):
            total += seen.st_blocks * sparse.BLOCK
    return total


def _volumes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    return {
        entry.name.removesuffix(".img"): entry.stat().st_blocks * sparse.BLOCK
        for entry in os.scandir(folder)
        if is_vm_id(entry.name.removesuffix(".img"))
    }
