"""Rows for tests: a host, an image, and a VM made from it."""

from datetime import UTC, datetime

from nexus.api.hosts import Capacity, HostNetwork
from nexus.ids import new_id
from nexus.manager.db.columns import StoredImage
from nexus.manager.db.network_tables import NetworkRow
from nexus.manager.db.tables import HostRow, ImageRow, VmRow


def host_row() -> HostRow:
    now = datetime.now(UTC)
    return HostRow(
        id=new_id(),
        name="host",
        agent_url="unix:/nonexistent/agent.sock",
        state="unreachable",
        engine="qemu",
        engine_reason="",
        engine_version="",
        network=HostNetwork(bridge="b", cidr="10.0.0.0/24", gateway="10.0.0.1", dns=[]),
        capacity=Capacity(
            vcpus=1, mem_mib=1, mem_available_mib=1, disk_mib=1, disk_available_mib=1, vms=0
        ),
        run_dir="/nonexistent",
        agent_version="",
        last_seen_at=now,
        created_at=now,
    )


def network_row(host: HostRow) -> NetworkRow:
    """The host's own network."""
    return NetworkRow(
        id=new_id(),
        project="default",
        name="default",
        kind="nat",
        host_id=host.id,
        cidr=host.network.cidr,
        gateway=host.network.gateway,
        bridge=host.network.bridge,
        state="ready",
        isolate_vms=False,
        last_address=0,
        created_at=host.created_at,
        updated_at=host.created_at,
    )


def image_row(name: str) -> ImageRow:
    return ImageRow(
        id=new_id(),
        project="default",
        kind="kernel",
        name=name,
        sha256="0" * 64,
        size_bytes=1,
        source="file",
        created_at=datetime.now(UTC),
    )


def vm_row(name: str, host: HostRow, kernel: ImageRow) -> VmRow:
    """A stopped VM that needs nothing done."""
    now = datetime.now(UTC)
    return VmRow(
        id=new_id(),
        project="default",
        name=name,
        host_id=host.id,
        engine="qemu",
        created_at=now,
        updated_at=now,
        vcpu=1,
        mem_mib=16,
        kernel=StoredImage(
            id=kernel.id,
            kind=kernel.kind,
            name=kernel.name,
            sha256=kernel.sha256,
            size_bytes=kernel.size_bytes,
        ),
        nics=[],
        tags={},
        ssh_keys=[],
        power="stopped",
        boot=1,
        generation=1,
        settled_generation=1,
        unsettled=False,
        wanted_by="admin",
        state="stopped",
        next_attempt_at=now,
    )
