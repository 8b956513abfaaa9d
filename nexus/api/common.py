"""What every wire type shares: strictness, names, pages and simple answers."""

from datetime import datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

T = TypeVar("T")


class Wire(BaseModel):
    """A value on the wire: immutable, and unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


Uuid = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
    ),
]
"""A lower-case UUIDv7."""

VmName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", max_length=63),
]
"""A host name label (RFC 1123): the guest gets it as its host name."""

ProjectName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", max_length=63),
]

ImageName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._:-]{0,127}$", max_length=128)
]

ImageRef = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._:-]{0,127}$", max_length=128)
]
"""An image's id or its name."""

VolumeRef = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""A volume's id or its name."""

ImagePath = Annotated[str, StringConstraints(pattern=r"^/[ -~]{1,4095}$", max_length=4096)]
"""A file under the manager's image root, where the manager allows paths in place of images."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

TagKey = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$")
]
TagValue = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,255}$")]
Tags = Annotated[dict[TagKey, TagValue], Field(max_length=64)]

Engine = Literal["firecracker", "qemu"]

Timestamp = datetime
"""Always UTC; RFC 3339 on the wire."""


class Progress(Wire):
    """How far something is that takes its time."""

    what: str
    fraction: Annotated[float, Field(ge=0, le=1)]


class Page(Wire, Generic[T]):
    """One page of a list. ``next_cursor`` is null on the last page."""

    items: list[T]
    next_cursor: str | None = None


class Item(Wire, Generic[T]):
    item: T


class Created(Wire, Generic[T]):
    id: Uuid
    item: T


class CreatedMany(Created[T], Generic[T]):
    """What several things made at once answer: the first one, and all of them."""

    items: list[T]


class Ok(Wire):
    ok: Literal[True] = True
