"""What an agent counts of its own doing, and what it says of its host at each scrape."""

from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from prometheus_client import Counter, Histogram
from prometheus_client.core import Metric

from nexus.api.endings import ExitCause
from nexus.api.hosts import Capacity
from nexus.api.machines import MachineState
from nexus.metrics import MIB, HttpMetrics, Registry, gauge

Way = Literal["boot", "load"]

_START_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)


class Counts:
    """One for an agent. To count something takes microseconds."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.http = HttpMetrics(self.registry)
        self._starts = Histogram(
            "nexus_agent_vmm_start_duration_seconds",
            "From the decision to start a VMM until its guest runs, or it is clear that it does "
            "not. way is boot, from disks, or load, from a snapshot; outcome is running or failed.",
            ["way", "outcome"],
            buckets=_START_S,
            registry=self.registry,
        )
        self._exits = Counter(
            "nexus_agent_vmm_exits",
            "VMMs that ended. asked is yes when that was wanted: a stop, a deletion, another boot.",
            ["cause", "asked"],
            registry=self.registry,
        )

    def started(self, way: Way, seconds: float, *, runs: bool) -> None:
        self._starts.labels(way, "running" if runs else "failed").observe(seconds)

    def ended(self, cause: ExitCause, *, asked: bool) -> None:
        self._exits.labels(cause, "yes" if asked else "no").inc()

    def families(self, states: Iterable[MachineState], capacity: Capacity) -> Iterator[Metric]:
        """Everything there is to show, with what the host has at this moment."""
        tally = Tally(states)
        yield gauge(
            "nexus_agent_machines",
            "VMs of this host by state.",
            ("state",),
            (((state,), tally[state]) for state in get_args(MachineState)),
        )
        of_host = {
            "cpus": ("CPUs that this agent may use.", capacity.vcpus),
            "memory_bytes": ("Memory of this host.", capacity.mem_mib * MIB),
            "memory_available_bytes": (
                "Memory that is left, as the kernel counts it.",
                capacity.mem_available_mib * MIB,
            ),
            "disk_bytes": (
                "Size of the file system with the VMs (FC_RUN_DIR).",
                capacity.disk_mib * MIB,
            ),
            "disk_available_bytes": (
                "What is left of that file system.",
                capacity.disk_available_mib * MIB,
            ),
        }
        for name, (documentation, value) in of_host.items():
            yield gauge(f"nexus_agent_{name}", documentation, (), [((), value)])
        yield from self.registry.collect()
