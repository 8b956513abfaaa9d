"""The MMDS data store: JSON that is put, merged (RFC 7396) and got back through the API."""

from typing import Any

import msgspec

from nexus.qemu.faults import Fault

DEFAULT_LIMIT_BYTES = 51_200


class DataStore:
    """One JSON object of at most ``limit_bytes`` when written out."""

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.content: dict[str, Any] = {}
        self._limit = limit_bytes
        self._set = False

    def put(self, content: dict[str, Any]) -> None:
        self._check(content)
        self.content = content
        self._set = True

    def patch(self, change: dict[str, Any]) -> None:
        """Merges; raises Fault when nothing was put yet, or when the result is too large."""
        if not self._set:
            raise Fault("MMDS error: The MMDS data store is not initialized.")
        merged = _merge(self.content, change)
        self._check(merged)
        self.content = merged

    def _check(self, content: dict[str, Any]) -> None:
        if len(msgspec.json.encode(content)) > self._limit:
            raise Fault(
                "The MMDS patch request doesn't fit. The data store size limit is "
                f"{self._limit} bytes."
            )


def _merge(target: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    result = dict(target)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = _merge(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result
