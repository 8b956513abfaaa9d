"""Quotas: how much a project's VMs, volumes and snapshots may be given, all together."""

from typing import Annotated

from pydantic import Field

from nexus.api.common import ProjectName, Timestamp, Wire

_Most = Annotated[int, Field(strict=True, ge=0, le=1 << 40)]


class Quota(Wire):
    """The most that a project may have. What is null is not limited."""

    vms: _Most | None = None
    vcpu: _Most | None = None
    mem_mib: _Most | None = None
    disk_mib: _Most | None = None


class Resources(Wire):
    """What VMs, volumes and snapshots were promised."""

    vms: int = 0
    vcpu: int = 0
    mem_mib: int = 0
    disk_mib: int = 0
    """Root disks, drives and volumes, by the size that guests see; and snapshots: the memory and
    the disks of each."""


class ProjectQuota(Wire):
    """A project's quota beside what it has."""

    project: ProjectName
    limits: Quota
    used: Resources
    """Of all VMs that are not being deleted, also those that do not run."""
    updated_at: Timestamp | None
    """When the limits were set; null when they never were."""
