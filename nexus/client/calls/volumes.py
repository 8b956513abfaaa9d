"""The calls of ``/v1/volumes``."""

from nexus.api.common import Created, Item, Page
from nexus.api.volumes import Volume, VolumeCreate
from nexus.client.calls.call import Call, created, item, nothing, one


def create_volume(spec: VolumeCreate) -> Call[Volume]:
    return Call("POST", "/v1/volumes", created(Created[Volume]), body=spec)


def list_volumes(limit: int | None, cursor: str | None) -> Call[Page[Volume]]:
    query = {"limit": limit, "cursor": cursor}
    return Call("GET", "/v1/volumes", Page[Volume].model_validate_json, query)


def get_volume(ref: str) -> Call[Volume]:
    return Call("GET", one("/v1/volumes", ref), item(Item[Volume]))


def delete_volume(ref: str) -> Call[None]:
    return Call("DELETE", one("/v1/volumes", ref), nothing)
