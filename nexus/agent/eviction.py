"""Which images a host forgets when it needs room for another one: a pure rule."""

from collections.abc import Sequence, Set

from nexus.images.store import HeldBlob


def evict(
    held: Sequence[HeldBlob], keep: Set[str], wanted_bytes: int, free_bytes: int
) -> list[HeldBlob] | None:
    """The least recently used ones that must go so that ``wanted_bytes`` fit; none of ``keep``.

    None when it would not fit without them all: then none need go.
    """
    going: list[HeldBlob] = []
    for blob in sorted(held, key=lambda blob: (blob.used_at, blob.sha256)):
        if wanted_bytes <= free_bytes:
            break
        if blob.sha256 not in keep and blob.disk_bytes:
            going.append(blob)
            free_bytes += blob.disk_bytes
    return going if wanted_bytes <= free_bytes else None
