"""Paths in the place of images in a VM's request, where ``MANAGER_ALLOW_IMAGE_PATHS`` allows them.

A path is opened and taken into the store as a registration does it; the VM is then made of an image
like any other. The same content is one image, however often its path is given.
"""

from dataclasses import replace
from typing import TypeVar

from nexus.api.errors import PathRefused
from nexus.api.images import ImageKind
from nexus.api.vms import VmSpec
from nexus.manager.services.images import Images
from nexus.manager.uow import Caller

Spec = TypeVar("Spec", bound=VmSpec)
_KINDS: tuple[ImageKind, ...] = ("kernel", "initrd", "rootfs")


async def replaced(images: Images, caller: Caller, request: Spec) -> Spec:
    """The request with ids of images for its paths.

    Raises PathRefused unless paths are allowed and this one lies under the image root, and what a
    registration raises.
    """
    paths = {kind: getattr(request, kind) for kind in _KINDS}
    paths = {kind: path for kind, path in paths.items() if path and path.startswith("/")}
    if not paths:
        return request
    if not images.settings.allow_image_paths:
        raise PathRefused(
            f"a VM is made of images, not of paths like {next(iter(paths.values()))[:200]!r}",
            suggestion="register the file first: nexus image add KIND NAME FILE",
        )
    # The request's Idempotency-Key is for its VM; the images are the same when it comes again.
    keyless = replace(caller, claim=None, if_match=None)
    ids: dict[str, str] = {
        kind: await images.for_path(keyless, kind, path) for kind, path in paths.items()
    }
    return request.model_copy(update=ids)
