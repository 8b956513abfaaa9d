"""The rule of quotas, as a pure function. See docs/storage.md."""

from collections.abc import Iterator

from nexus.api.errors import QuotaExceeded
from nexus.api.quotas import Quota, Resources

_WORDS = {
    "vms": ("VMs", "--vms"),
    "vcpu": ("vCPUs", "--vcpu"),
    "mem_mib": ("MiB of memory", "--mem"),
    "disk_mib": ("MiB of disks", "--disk"),
}


def check(project: str, limits: Quota, used: Resources, asked: Resources) -> None:
    """Raises QuotaExceeded if ``asked`` on top of ``used`` is more than a limit.

    What is not asked for is not looked at: a project above a limit that was lowered may still do
    everything that takes no more of it.
    """
    over = list(_over(limits, used, asked))
    if not over:
        return
    said = "; ".join(
        f"it may have {limit} {_WORDS[name][0]}, has {have}, and {more} more are asked for"
        for name, limit, have, more in over
    )
    enough = " ".join(f"{_WORDS[name][1]} {have + more}" for name, _, have, more in over)
    raise QuotaExceeded(
        f"the quota of project {project!r} does not allow this: {said}",
        suggestion=f"ask for less, delete what is not needed (nexus usage), or have an admin "
        f"raise it: nexus quota set {project} {enough}",
    )


def _over(limits: Quota, used: Resources, asked: Resources) -> Iterator[tuple[str, int, int, int]]:
    """The limits that would be exceeded: name, limit, what there is, what is asked for."""
    for name in _WORDS:
        limit: int | None = getattr(limits, name)
        have: int = getattr(used, name)
        more: int = getattr(asked, name)
        if limit is not None and more > 0 and have + more > limit:
            yield name, limit, have, more
