"""What the making of a VM has to do with the template that it is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.common import Wire
from nexus.api.errors import NotFound
from nexus.api.vms import Vm, VmCreate
from nexus.manager.db.columns import StoredImages
from nexus.manager.db.tables import VmRow
from nexus.manager.db.template_tables import TemplateRow
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
