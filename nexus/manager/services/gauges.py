"""What ``/metrics`` reads of the database at each scrape: some sums, in one session, and nothing
that is kept in memory or costs other requests anything."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import get_args

from prometheus_client.core import Metric
from sqlalchemy import Executable, and_, func, select

from nexus.api.hosts import HostState
from nexus.api.templates import PrebootState
from nexus.api.vm_snapshots import SnapshotState
from nexus.api.vms import VmState
from nexus.manager.counts import Counts
from nexus.manager.db.session import Database
from nexus.manager.db.snapshot_tables import SnapshotRow
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.db.template_tables import PrebootRow, TemplateRow, TemplateVersionRow
from nexus.manager.services.hosts import is_healthy
from nexus.manager.uow import SYSTEM
from nexus.metrics import MIB, gauge

_VMS: Executable = select(
    VmRow.project,
    VmRow.state,
    VmRow.host_id,
    VmRow.pool_id,
    VmRow.power,
    VmRow.unsettled,
    func.count(),
    func.sum(VmRow.vcpu),
    func.sum(VmRow.mem_mib),
    func.sum(VmRow.disk_mib),
).group_by(VmRow.project, VmRow.state, VmRow.host_id, VmRow.pool_id, VmRow.power, VmRow.unsettled)
_SNAPSHOTS = (
    select(SnapshotRow.project, SnapshotRow.state, func.count())
    .where(SnapshotRow.template_id.is_(None))
    .group_by(SnapshotRow.project, SnapshotRow.state)
)
_TEMPLATES = (
    select(
        TemplateRow.project,
        TemplateRow.name,
        TemplateVersionRow.preboot,
        TemplateVersionRow.pool,
        PrebootRow.id,
        PrebootRow.host_id,
        PrebootRow.state,
    )
    .join(
        TemplateVersionRow,
        and_(
            TemplateVersionRow.template_id == TemplateRow.id,
            TemplateVersionRow.version == TemplateRow.version,
        ),
    )
    .outerjoin(
        PrebootRow,
        and_(PrebootRow.template_id == TemplateRow.id, PrebootRow.version == TemplateRow.version),
    )
    .order_by(TemplateRow.project, TemplateRow.name, PrebootRow.id)
)


@dataclass(frozen=True, slots=True)
class _Vms:
    """So many VMs that are alike."""

    project: str
    state: VmState
    host_id: str
    pool_id: str | None
    power: str
    unsettled: bool
    count: int
    vcpu: int
    mem_mib: int
    disk_mib: int

    @property
    def waits(self) -> bool:
        """In a pool, loaded: they can be taken at once."""
        return not self.unsettled and self.power == self.state == "paused"

    @property
    def loads(self) -> bool:
        return self.unsettled and self.power != "deleted"


@dataclass(frozen=True, slots=True)
class _Template:
    """A template's newest version, on a host where one is prebooted, or on none."""

    project: str
    name: str
    preboot: bool
    pool: int
    preboot_id: str | None
    host_id: str | None
    state: PrebootState | None


class Gauges:
    """Reads how things are."""

    def __init__(self, db: Database, counts: Counts) -> None:
        self.db = db
        self.counts = counts

    async def read(self, project: str | None) -> list[Metric]:
        """Everything of one project, or of all of them, and of every host."""
        async with self.db.scan() as session:
            vms = [_Vms(*row) for row in await session.execute(_VMS)]
            templates = [_Template(*row) for row in await session.execute(_TEMPLATES)]
            snapshots = [(of, state, n) for of, state, n in await session.execute(_SNAPSHOTS)]
            # Last: a host is there for good, and the others name it.
            hosts = (await session.scalars(select(HostRow).order_by(HostRow.id))).all()
        names = _names(hosts)
        seen = [each for each in templates if project in (None, each.project)]
        return [
            *_of_vms(project, vms),
            *_of_snapshots(project, snapshots),
            *_of_preboots(seen, names),
            *_of_pools(seen, names, vms),
            *self.counts.of_pools(project, {(t.project, t.name): t.pool > 0 for t in templates}),
            *_of_hosts(hosts, names),
            *(_promised(hosts, names, vms) if project is None else ()),
        ]


def _names(hosts: Sequence[HostRow]) -> dict[str, str]:
    """Hosts' labels by id: their names, and more where two have the same."""
    often = Counter(host.name for host in hosts)
    return {
        host.id: host.name if often[host.name] == 1 else f"{host.name}-{host.id[-12:]}"
        for host in hosts
    }


def _by_state(
    project: str | None, counted: Iterable[tuple[str, str, int]], states: Sequence[str]
) -> Iterator[tuple[tuple[str, str], int]]:
    """Of each project every state, also with 0: one that is left does not look like one that
    nobody reads any more."""
    totals: Counter[tuple[str, str]] = Counter()
    for of, state, count in counted:
        totals[of, state] += count
    projects = {project} if project is not None else {SYSTEM.project, *(of for of, _ in totals)}
    for of in sorted(projects):
        for state in states:
            yield (of, state), totals[of, state]


def _of_vms(project: str | None, vms: Sequence[_Vms]) -> Iterator[Metric]:
    counted = ((each.project, each.state, each.count) for each in vms if each.pool_id is None)
    yield gauge(
        "nexus_vms",
        "VMs by state, without those that wait in pools: nexus_pool_ready has them.",
        ("project", "state"),
        _by_state(project, counted, get_args(VmState)),
    )


def _of_snapshots(project: str | None, counted: Iterable[tuple[str, str, int]]) -> Iterator[Metric]:
    yield gauge(
        "nexus_snapshots",
        "Snapshots by state, without those of prebooted templates: nexus_preboots has them.",
        ("project", "state"),
        _by_state(project, counted, get_args(SnapshotState)),
    )


def _of_preboots(templates: Sequence[_Template], names: dict[str, str]) -> Iterator[Metric]:
    yield gauge(
        "nexus_preboots",
        "1 for the state in which the newest version of a prebooted template is on a host. failed: "
        "VMs of it boot for themselves there.",
        ("project", "template", "host", "state"),
        (
            ((each.project, each.name, names[each.host_id], state), float(state == each.state))
            for each in templates
            if each.preboot and each.host_id is not None
            for state in get_args(PrebootState)
        ),
    )


def _of_pools(
    templates: Sequence[_Template], names: dict[str, str], vms: Sequence[_Vms]
) -> Iterator[Metric]:
    pooled = [each for each in templates if each.preboot and each.pool]
    there = [(each, names[each.host_id]) for each in pooled if each.host_id is not None]
    ready: Counter[str | None] = Counter()
    loading: Counter[str | None] = Counter()
    for some in vms:
        ready[some.pool_id] += some.count * some.waits
        loading[some.pool_id] += some.count * some.loads
    hosts: Counter[tuple[str, str]] = Counter()
    for each in pooled:
        hosts[each.project, each.name] += each.host_id is not None
    yield gauge(
        "nexus_pool_hosts",
        "Hosts with a pool of the template's newest version: 0 until the first VM of it was "
        "asked for.",
        ("project", "template"),
        hosts.items(),
    )
    labels = ("project", "template", "host")
    yield gauge(
        "nexus_pool_size",
        "VMs that are to wait on the host for somebody who wants one of the template's newest "
        "version.",
        labels,
        (((each.project, each.name, host), each.pool) for each, host in there),
    )
    yield gauge(
        "nexus_pool_ready",
        "VMs that wait there, loaded and paused: the next ones asked for need only be resumed.",
        labels,
        (
            ((each.project, each.name, host), ready[each.preboot_id] * (each.state == "ready"))
            for each, host in there
        ),
    )
    yield gauge(
        "nexus_pool_loading",
        "VMs that are being loaded into the pool.",
        labels,
        (((each.project, each.name, host), loading[each.preboot_id]) for each, host in there),
    )


def _of_hosts(hosts: Sequence[HostRow], names: dict[str, str]) -> Iterator[Metric]:
    now = datetime.now(UTC)
    yield gauge(
        "nexus_hosts",
        "1 for the state that a host is in. An unreachable one gets no new VMs.",
        ("host", "state"),
        (
            ((names[host.id], state), float((state == "healthy") == is_healthy(host, now)))
            for host in hosts
            for state in get_args(HostState)
        ),
    )
    of_host: dict[str, tuple[str, Callable[[HostRow], float]]] = {
        "vcpus": ("CPUs that the host's agent may use.", lambda host: host.capacity.vcpus),
        "memory_bytes": ("Memory of the host.", lambda host: host.capacity.mem_mib * MIB),
        "memory_available_bytes": (
            "Memory that the host has left, as its kernel counts it.",
            lambda host: host.capacity.mem_available_mib * MIB,
        ),
        "disk_bytes": (
            "Size of the file system with the host's VMs.",
            lambda host: host.capacity.disk_mib * MIB,
        ),
        "disk_available_bytes": (
            "What is left of that file system.",
            lambda host: host.capacity.disk_available_mib * MIB,
        ),
    }
    for name, (documentation, value) in of_host.items():
        values = [((names[host.id],), value(host)) for host in hosts]
        yield gauge(f"nexus_host_{name}", documentation, ("host",), values)


def _promised(
    hosts: Sequence[HostRow], names: dict[str, str], vms: Sequence[_Vms]
) -> Iterator[Metric]:
    """Of all projects together: who sees one of them only could tell what the others have."""
    promised: Counter[tuple[str, str]] = Counter()
    for some in vms:
        promised[some.host_id, "vcpus"] += int(some.vcpu)
        promised[some.host_id, "memory_bytes"] += int(some.mem_mib) * MIB
        promised[some.host_id, "disk_bytes"] += int(some.disk_mib) * MIB
    of_vms = {
        "vcpus": "vCPUs of all VMs of the host, also of those that do not run or wait in pools.",
        "memory_bytes": (
            "Memory of all VMs of the host, also of those that do not run or wait in pools. New "
            "ones fit while this is below nexus_host_memory_bytes times MANAGER_MEM_OVERCOMMIT."
        ),
        "disk_bytes": (
            "What the own disks of all VMs of the host may grow to, without volumes and snapshots."
        ),
    }
    for name, documentation in of_vms.items():
        values = [((names[host.id],), promised[host.id, name]) for host in hosts]
        yield gauge(f"nexus_host_promised_{name}", documentation, ("host",), values)
