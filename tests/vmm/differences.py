"""Where ``nexus-qemu`` answers otherwise than Firecracker, and why: all of it.

``docs/conformance.md`` shows this table; a test compares the two.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    status: int
    fault: str
    why: str


_MMDS = Difference(
    400,
    r"MMDS config error: The guest cannot reach MMDS under nexus-qemu\.",
    "QEMU does not look into the guest's packets; the store itself works.",
)

DIFFERENCES: dict[str, Difference] = {
    "MMDS configuration": _MMDS,
    "MMDS on an unknown NIC": _MMDS,
    "MMDS on no NIC": _MMDS,
    "MMDS beyond link-local": _MMDS,
    "balloon before its driver": Difference(
        204, "", "QEMU takes the target at once; the driver follows it when it comes up."
    ),
}
