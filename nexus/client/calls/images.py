"""The calls of ``/v1/images``."""

from nexus.api.common import Created, Item, Page
from nexus.api.images import (
    Image,
    ImageBuild,
    ImageBuildCreate,
    ImageCreate,
    ImageKind,
    ImageUpload,
    ImageUploadComplete,
    ImageUploadCreate,
)
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


UPLOADS = "/v1/images/uploads"


def begin_upload(spec: ImageUploadCreate) -> Call[ImageUpload]:
    return Call("POST", UPLOADS, created(Created[ImageUpload]), body=spec)


def get_upload(upload_id: str) -> Call[ImageUpload]:
    return Call("GET", one(UPLOADS, upload_id), item(Item[ImageUpload]))


def list_uploads(limit: int | None, cursor: str | None) -> Call[Page[ImageUpload]]:
    query = {"limit": limit, "cursor": cursor}
    return Call("GET", UPLOADS, Page[ImageUpload].model_validate_json, query)


def write_upload(upload_id: str) -> Call[ImageUpload]:
    """Its body is the file's content from the upload's offset on, sent as a stream."""
    return Call("PATCH", one(UPLOADS, upload_id), item(Item[ImageUpload]))


def complete_upload(upload_id: str, spec: ImageUploadComplete) -> Call[Image]:
    # Unpacking, checking and hashing a large file takes its time.
    path = one(UPLOADS, upload_id, "complete")
    return Call("POST", path, created(Created[Image]), body=spec, timeout_s=3600.0)


def delete_upload(upload_id: str) -> Call[None]:
    return Call("DELETE", one(UPLOADS, upload_id), nothing)
