"""What the making of a VM has to do with the template that it is made of."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Wire
from nexus.api.errors import NotFound
from nexus.api.vms import Vm, VmCreate
from nexus.manager.db.columns import StoredImages
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import VmRow
from nexus.manager.db.template_tables import TemplateRow
from nexus.manager.services import preboots
from nexus.manager.services.vm_images import VmImages, choose_over


@dataclass(frozen=True, slots=True)
class TemplateUse:
    """One version of a template, of which VMs are to be made."""

    template_id: str
    name: str
    version: int
    images: StoredImages
    overrides: Mapping[str, JsonValue]
    """The fields of the spec that the request gave."""
    answer: Callable[[list[Vm]], Wire] = field(repr=False)
    """What the request answers."""
    preboot: bool = False
    """Whether its VMs are to be clones of one that was booted before."""

    async def choose(self, session: AsyncSession, project: str, request: VmCreate) -> VmImages:
        """The version's images, but for those that the request overrides.

        Locks the template, so that it is not deleted before the VM's row is there: then the
        version's images could go. Raises NotFound when it is gone, ImageNotReady.
        """
        key_share = {"read": True, "key_share": True}
        template = await session.get(TemplateRow, self.template_id, with_for_update=key_share)
        if template is None:
            raise NotFound(
                f"the template {self.name!r} was deleted meanwhile", suggestion="nexus template ls"
            )
        return await choose_over(session, project, request, held_of(self.images), self.overrides)

    async def booted(self, session: AsyncSession, now: datetime) -> SnapshotRow | None:
        """The snapshot that a VM of the template can be loaded from, locked; None if it boots."""
        if not self.preboot:
            return None
        return await preboots.ready(session, self.template_id, self.version, now)

    async def want_booted(
        self, session: AsyncSession, project: str, host_ids: Collection[str], now: datetime
    ) -> None:
        """Asks that the next VMs on these hosts need not boot, if the template is such a one."""
        if self.preboot:
            for host_id in sorted(host_ids):
                which = (self.template_id, self.version, host_id)
                await preboots.want(session, project, self.name, which, now)

    def mark(self, row: VmRow) -> None:
        """Has a new VM remember where it comes from."""
        row.template_id, row.template_name = self.template_id, self.name
        row.template_version, row.template_overrides = self.version, dict(self.overrides)


def held_of(images: StoredImages) -> VmImages:
    """A version's images as the making of a VM takes them."""
    return VmImages(images.kernel, images.initrd, images.rootfs, dict(images.drives))


def stored_of(images: VmImages) -> StoredImages:
    """The other way round."""
    return StoredImages(
        kernel=images.kernel,
        initrd=images.initrd,
        rootfs=images.rootfs,
        drives=dict(images.drives),
    )
