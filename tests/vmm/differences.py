"""Where ``nexus-qemu`` answers otherwise than Firecracker, and why: all of it.

``docs/conformance.md`` shows this table; a test compares the two.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    status: int
    fault: str
    why: str


DIFFERENCES: dict[str, Difference] = {}
