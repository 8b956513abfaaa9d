"""What this manager counts of its own doing. What is in the database is not counted but read, at
each scrape: ``services/gauges.py``."""

from collections.abc import Mapping
from typing import Literal, get_args

from prometheus_client import Counter, Histogram
from prometheus_client.core import Metric

from nexus.api.errors import HostUnreachable, NexusError
from nexus.metrics import HttpMetrics, Registry

Action = Literal[
    "vm_sent_again",
    "vm_expired",
    "vm_unknown",
    "orphan_removed",
    "host_unreachable",
    "preboot_failed",
]
"""What pipelines do of their own accord."""
Missed = Literal["empty", "different"]

_CALL_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_OUTCOMES = (
    "outcome is done (the host answered with how things are), refused, unreachable, or broken_off "
    "(something else was wanted meanwhile)."
)


class Counts:
    """One for a manager process. To count something takes microseconds."""

    def __init__(self) -> None:
        self.registry = Registry()
        """What belongs to no project."""
        self.http = HttpMetrics(self.registry)
        self._vm_calls = self._calls("vm", "bring a VM to the wanted power", "power")
        self._snapshot_calls = self._calls("snapshot", "capture or delete a snapshot", "action")
        self._actions = Counter(
            "nexus_reconciler_actions",
            "What the manager did without being asked: sent a VM again to a host that had lost "
            "it, deleted one whose time was up, called one unknown because its host is silent, "
            "removed a machine that no row knows, called a host unreachable, gave up a template's "
            "preboot.",
            ["action"],
            registry=self.registry,
        )
        for action in get_args(Action):
            self._actions.labels(action)  # a rate needs to have seen the 0
        self._taken = Counter(
            "nexus_pool_taken",
            "VMs that were given from a pool.",
            ["project", "template"],
            registry=None,
        )
        self._missed = Counter(
            "nexus_pool_missed",
            "VMs of a template with a pool that came about another way. reason is empty when "
            "fewer were waiting than were asked for, different when what was asked for is not "
            "what waits there.",
            ["project", "template", "reason"],
            registry=None,
        )

    def _calls(self, of: str, that: str, label: str) -> Histogram:
        return Histogram(
            f"nexus_{of}_call_duration_seconds",
            f"Calls at agents that {that}. {_OUTCOMES}",
            [label, "outcome"],
            buckets=_CALL_S,
            registry=self.registry,
        )

    def vm_call(self, power: str, seconds: float, answer: object, *, broken_off: bool) -> None:
        outcome = _outcome(answer, broken_off=broken_off)
        self._vm_calls.labels(power, outcome).observe(seconds)

    def snapshot_call(self, state: str, seconds: float, answer: object) -> None:
        action = "capture" if state == "requested" else "delete"
        self._snapshot_calls.labels(action, _outcome(answer)).observe(seconds)

    def acted(self, action: Action, times: int = 1) -> None:
        self._actions.labels(action).inc(times)

    def taken(self, project: str, template: str, vms: int) -> None:
        self._taken.labels(project, template).inc(vms)

    def missed(self, project: str, template: str, vms: int, reason: Missed) -> None:
        self._missed.labels(project, template, reason).inc(vms)

    def of_pools(
        self, project: str | None, templates: Mapping[tuple[str, str], bool]
    ) -> list[Metric]:
        """What was counted of the pools of one project, or of all.

        ``templates`` are all that there are in the installation, by project and name, and whether
        they have pools. Those begin with 0; what is not among them is forgotten, so that templates
        which come and go do not pile up here.
        """
        for of in (of for of, has_pool in templates.items() if has_pool):
            self._taken.labels(*of)
            for reason in get_args(Missed):
                self._missed.labels(*of, reason)
        shown = []
        for counter in (self._taken, self._missed):
            (family,) = counter.collect()
            of_project = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                if (sample.labels["project"], sample.labels["template"]) not in templates:
                    counter.remove(*sample.labels.values())
                elif project in (None, sample.labels["project"]):
                    of_project.samples.append(sample)
            shown.append(of_project)
        return shown


def _outcome(answer: object, *, broken_off: bool = False) -> str:
    if broken_off:
        return "broken_off"
    if isinstance(answer, HostUnreachable):
        return "unreachable"
    return "refused" if isinstance(answer, NexusError) else "done"
