"""The calls of ``/v1/hosts``."""

from nexus.api.common import Item, Page
from nexus.api.hosts import Host
from nexus.client.calls.call import Call, item, one


def list_hosts(limit: int | None, cursor: str | None) -> Call[Page[Host]]:
    query = {"limit": limit, "cursor": cursor}
    return Call("GET", "/v1/hosts", Page[Host].model_validate_json, query)


def get_host(host_id: str) -> Call[Host]:
    return Call("GET", one("/v1/hosts", host_id), item(Item[Host]))
