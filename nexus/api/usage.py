"""What disks, volumes, snapshots and images take, for each project and each host."""

from nexus.api.common import Timestamp, Uuid, Wire


class Measured(Wire):
    """What an agent finds on its disks, in bytes of allocated blocks.

    Blocks that clones share are counted for each of them.
    """

    vms: dict[Uuid, int]
    """All of a VM but its volumes and what it reads straight from the store."""
    volumes: dict[Uuid, int]
    snapshots: dict[Uuid, int]
    images_bytes: int
    """Of the host's image store."""
    images_size_bytes: int
    """The same with all holes."""


class Space(Wire):
    promised_mib: int
    """What it may come to take: for disks the sizes that guests see."""
    real_mib: int | None
    """What it takes; null while no host has told it."""


class Spaces(Wire):
    disks: Space
    """Root disks and drives of VMs that are not being deleted, without volumes."""
    volumes: Space
    snapshots: Space
    images: Space


class ProjectUse(Wire):
    project: str
    vms: int
    vcpu: int
    mem_mib: int
    space: Spaces


class HostUse(Wire):
    host_id: Uuid
    name: str
    vms: int
    space: Spaces
    disk_mib: int
    """The size of the file system that VMs lie on."""
    disk_available_mib: int
    measured_at: Timestamp | None
    """When the host told what things really take; null when it never did."""


class Usage(Wire):
    projects: list[ProjectUse]
    hosts: list[HostUse]
