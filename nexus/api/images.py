"""Images: named kernels, initrds and root file systems."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from nexus.api.common import ImageName, Sha256, Timestamp, Uuid, Wire

ImageKind = Literal["kernel", "initrd", "rootfs"]
ImageRecipe = Literal["debian-cloud", "busybox"]
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


class ImageBuildCreate(Wire):
    recipe: ImageRecipe


class ImageBuild(Wire):
    """A build that runs in the background. ``images`` are the ids it registered."""

    id: Uuid
    recipe: ImageRecipe
    state: BuildState
    progress: float
    """From 0 to 1."""
    step: str
    error: str | None
    images: list[Uuid]
    created_at: Timestamp
    updated_at: Timestamp
