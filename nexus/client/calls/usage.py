"""The call of ``/v1/usage``."""

from nexus.api.common import Item
from nexus.api.usage import Usage
from nexus.client.calls.call import Call, item


def get_usage() -> Call[Usage]:
    return Call("GET", "/v1/usage", item(Item[Usage]))
