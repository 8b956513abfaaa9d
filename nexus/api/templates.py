"""Templates: named, versioned descriptions of VMs."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from nexus.api.common import Timestamp, Uuid, VmName, Wire
from nexus.api.vms import Vm, VmCreate, VmImage, VmSpec

VersionNumber = Annotated[int, Field(strict=True, ge=1, le=(1 << 31) - 1)]
PoolSize = Annotated[int, Field(strict=True, ge=0, le=100)]
Note = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=255)]
"""Why a version was made, in one line."""


class TemplateCreate(Wire):
    """A request for a template: version 1 of it."""

    name: VmName
    spec: VmSpec = Field(default_factory=VmSpec)
    """What its VMs are made of. What is left out is as for a VM, or as ``from_vm`` is."""
    from_vm: VmName | None = None
    """Id or name of a VM: the template is as that VM is now, but for its name and addresses."""
    preboot: Annotated[bool, Field(strict=True)] = False
    """Have a VM of it booted once on each host that has VMs of it, and make later ones there as
    clones of that one, ready at once."""
    pool: PoolSize = 0
    """Keep so many clones loaded and paused on each such host: a VM is then one of these, resumed.
    Needs ``preboot``."""
    note: Note = ""


class TemplateChange(Wire):
    """A new version: as the newest one, but for the fields of ``spec`` that are given. Each of
    them is then what is given here, tags and lists as a whole."""

    spec: VmSpec = Field(default_factory=VmSpec)
    preboot: Annotated[bool, Field(strict=True)] | None = None
    pool: PoolSize | None = None
    note: Note = ""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.spec.model_fields_set and self.preboot is None and self.pool is None:
            raise ValueError("nothing is to be changed: spec names no field")
        return self


class TemplateImages(Wire):
    """The images of a version, by content: found when it was made, and the same ever after."""

    kernel: VmImage
    initrd: VmImage | None
    rootfs: VmImage | None
    drives: dict[str, VmImage] = Field(default_factory=dict)
    """By the names of the drives that begin as a copy of one."""


class TemplateVersion(Wire):
    """What a template was at one time. A version never changes."""

    template_id: Uuid
    name: str
    """The template's."""
    version: int
    spec: VmSpec
    images: TemplateImages
    preboot: bool = False
    pool: int = 0
    note: str
    created_at: Timestamp
    created_by: str


class Template(Wire):
    id: Uuid
    name: str
    project: str
    version: int
    """The newest one."""
    spec: VmSpec
    """Its spec."""
    images: TemplateImages
    preboot: bool = False
    pool: int = 0
    created_at: Timestamp
    updated_at: Timestamp


PrebootState = Literal["wanted", "booting", "capturing", "ready", "failed"]


class TemplatePreboot(Wire):
    """A booted VM of a template's version on one host, kept as a snapshot to make VMs of."""

    id: Uuid
    version: int
    host_id: Uuid
    state: PrebootState
    message: str | None
    """Why it failed."""
    vm_name: str
    """The VM that is booted for it, and goes afterwards."""
    snapshot_id: Uuid | None
    vmm_version: str | None
    pooled: int
    """How many VMs wait in its pool."""
    created_at: Timestamp
    updated_at: Timestamp


class TemplateInstantiate(VmCreate):
    """A VM of a template, or ``count`` of them. What is given here comes before what the template
    says: tags beside the template's, everything else in its place."""

    version: VersionNumber | None = None
    """The newest when absent."""


class Instantiated(Wire):
    """What an instantiate answers, so that a reader can see what came from where."""

    id: Uuid
    """The first VM's."""
    item: Vm
    items: list[Vm]
    template: TemplateVersion
    overrides: dict[str, JsonValue]
    """The fields that the request gave, without name and count."""


class SpecChange(Wire):
    """A difference. ``field`` is ``mem_mib``, ``tags.team``, ``drives.data``, ``nics.0``,
    ``kernel`` …; null is nothing there."""

    field: str
    before: JsonValue
    after: JsonValue


class TemplateDiff(Wire):
    """How two versions of a template differ, or a VM from a version."""

    template: str
    before: str
    """``3``, a version."""
    after: str
    """A version, or ``VM web``."""
    changes: list[SpecChange]
