"""Images: named kernels, initrds and root file systems."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from nexus.api.common import ImageName, Sha256, Timestamp, Uuid, Wire

ImageKind = Literal["kernel", "initrd", "rootfs"]
ImageRecipe = Literal["debian-cloud", "busybox", "debian", "oci"]
BuildState = Literal["queued", "running", "succeeded", "failed"]

ImageFormat = Literal["raw", "gzip", "xz", "zstd", "qcow2"]
"""How the bytes that are given stand for an image. What is kept is always raw."""

HostPath = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class ImageCreate(Wire):
    """Registers a file that lies under the manager's image root."""

    kind: ImageKind
    name: ImageName
    host_path: HostPath
    """Absolute, or relative to the image root."""
    format: ImageFormat | None = None
    """What the file must be; when absent, its first bytes say it."""


class Image(Wire):
    id: Uuid
    kind: ImageKind
    name: str
    project: str
    sha256: Sha256
    size_bytes: int
    source: str
    """Where it came from: a path under the image root, or a recipe."""
    created_at: Timestamp


PackageName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]{1,99}$", max_length=100)
]
"""A Debian package's name (Debian policy 5.6.1)."""

OciSource = Annotated[
    str,
    StringConstraints(
        pattern=r"^(docker://|oci:|oci-archive:|docker-archive:)[!-~]{1,1024}$", max_length=1100
    ),
]
"""``docker://REGISTRY/NAME:TAG``, or a layout or archive under the image root:
``oci:FOLDER[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:NAME:TAG]``."""


class ImageBuildOptions(Wire):
    """What a build is asked for beside its recipe."""

    name: ImageName | None = None
    """What the image is to be called; when absent, like the recipe."""
    packages: Annotated[list[PackageName], Field(max_length=200)] = Field(default_factory=list)
    """Installed beside the recipe's own; ``debian`` only."""
    size_mib: Annotated[int, Field(strict=True, ge=64, le=1 << 20)] | None = None
    """How large the disk is; ``debian`` and ``oci`` only."""
    source: OciSource | None = None
    """Where an ``oci`` image comes from."""


class ImageBuildCreate(ImageBuildOptions):
    recipe: ImageRecipe

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.packages and self.recipe != "debian":
            raise ValueError("only the recipe debian takes packages")
        if self.size_mib is not None and self.recipe not in ("debian", "oci"):
            raise ValueError("only the recipes debian and oci take a size")
        if self.name is not None and self.recipe == "debian-cloud":
            raise ValueError("debian-cloud makes a kernel and an initrd of that name")
        if (self.source is not None) != (self.recipe == "oci"):
            raise ValueError("the recipe oci, and no other, needs a source")
        if self.recipe == "oci" and self.name is None:
            raise ValueError("the recipe oci needs a name for the image")
        return self

    def options(self) -> ImageBuildOptions:
        """Without the recipe."""
        return ImageBuildOptions.model_validate(self.model_dump(exclude={"recipe"}))


class ImageBuild(Wire):
    """A build that runs in the background. ``images`` are the ids it registered."""

    id: Uuid
    recipe: ImageRecipe
    options: ImageBuildOptions = Field(default_factory=ImageBuildOptions)
    state: BuildState
    progress: float
    """From 0 to 1."""
    step: str
    error: str | None
    images: list[Uuid]
    created_at: Timestamp
    updated_at: Timestamp


class ImageUploadCreate(Wire):
    """Announces an upload. What is known of its content beforehand is checked at its end."""

    kind: ImageKind
    name: ImageName
    size_bytes: Annotated[int, Field(strict=True, ge=1, le=1 << 50)] | None = None
    """How many bytes will be sent."""
    sha256: Sha256 | None = None
    """Of the bytes that are sent; the image's own differs when they are compressed."""
    format: ImageFormat | None = None


class ImageUploadComplete(Wire):
    """Says that all bytes are there."""

    sha256: Sha256 | None = None
    """Of all bytes that were sent."""


class ImageUpload(Wire):
    """An upload that is not an image yet."""

    id: Uuid
    kind: ImageKind
    name: str
    project: str
    offset: int
    """How many bytes are there; the next ones go here."""
    size_bytes: int | None
    sha256: str | None
    format: ImageFormat | None
    created_at: Timestamp
    expires_at: Timestamp
    """When it is thrown away unless more comes."""
