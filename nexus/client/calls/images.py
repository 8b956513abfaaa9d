"""The calls of ``/v1/images``."""

from nexus.api.common import Created, Item, Page
from nexus.api.images import Image, ImageBuild, ImageBuildCreate, ImageCreate, ImageKind
from nexus.client.calls.call import Call, created, item, nothing, one


def register_image(spec: ImageCreate) -> Call[Image]:
    # Hashing and copying a large file takes its time.
    return Call("POST", "/v1/images", created(Created[Image]), body=spec, timeout_s=600.0)


def list_images(
    kind: ImageKind | None, name: str | None, limit: int | None, cursor: str | None
) -> Call[Page[Image]]:
    query = {"kind": kind, "name": name, "limit": limit, "cursor": cursor}
    return Call("GET", "/v1/images", Page[Image].model_validate_json, query)


def get_image(ref: str) -> Call[Image]:
    return Call("GET", one("/v1/images", ref), item(Item[Image]))


def delete_image(ref: str) -> Call[None]:
    return Call("DELETE", one("/v1/images", ref), nothing)


def build_image(spec: ImageBuildCreate) -> Call[ImageBuild]:
    return Call("POST", "/v1/images/builds", created(Created[ImageBuild]), body=spec)


def get_build(build_id: str) -> Call[ImageBuild]:
    return Call("GET", one("/v1/images/builds", build_id), item(Item[ImageBuild]))


def list_builds(limit: int | None, cursor: str | None) -> Call[Page[ImageBuild]]:
    query = {"limit": limit, "cursor": cursor}
    return Call("GET", "/v1/images/builds", Page[ImageBuild].model_validate_json, query)
