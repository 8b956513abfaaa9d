"""Which VMs a list is narrowed to."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, or_, select

from nexus.api.vms import VmState
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.services.vm_tags import tagged


@dataclass(frozen=True, slots=True)
class VmFilter:
    """Conditions that all have to hold; none of them is no condition."""

    state: VmState | None = None
    host: str | None = None
    """A host's id or name."""
    name_prefix: str | None = None
    pooled: bool = False
    """Also VMs that wait in pools."""
    template: str | None = None
    """The id or name of the template that they come from; the name also when it is gone."""
    tags: Sequence[str] = ()
    """``vm_tags.TagSelector``s."""

    def conditions(self, project: str) -> list[ColumnElement[bool]]:
        """For a query on ``VmRow``, within a project."""
        found = [VmRow.project == project, *tagged(project, self.tags)]
        if self.state is not None:
            found.append(VmRow.state == self.state)
        if self.name_prefix is not None:
            found.append(VmRow.name.startswith(self.name_prefix, autoescape=True))
        if not self.pooled:
            found.append(VmRow.pool_id.is_(None))
        if self.template is not None:
            came_from = (VmRow.template_id == self.template, VmRow.template_name == self.template)
            found.append(or_(*came_from))
        if self.host is not None:
            named = or_(HostRow.id == self.host, HostRow.name == self.host)
            found.append(VmRow.host_id.in_(select(HostRow.id).where(named)))
        return found


NO_FILTER = VmFilter()
