"""The calls about the manager itself."""

from nexus.client.calls.call import Call


def ready() -> Call[bool]:
    return Call("GET", "/readyz", lambda content: True, timeout_s=5.0, probe=True)
