"""Contents of images, as agents fetch them from the manager."""

from typing import Annotated

from pydantic import Field

from nexus.api.common import Sha256, Wire

_Byte = Annotated[int, Field(ge=0)]


class BlobMap(Wire):
    """Where a content has data; everything else of it is zeros, which need not be sent."""

    sha256: Sha256
    size_bytes: _Byte
    ranges: list[tuple[_Byte, _Byte]]
    """Where each part begins and ends, in order."""

    @property
    def data_bytes(self) -> int:
        return sum(end - start for start, end in self.ranges)
