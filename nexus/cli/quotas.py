"""What the commands on quotas do."""

from collections.abc import Mapping

from nexus.api.quotas import ProjectQuota, Quota
from nexus.cli.devices import NONE, mib
from nexus.cli.exits import UsageFault, problems
from nexus.cli.output import as_json, print_json, table
from nexus.cli.session import Session

ROWS = (
    ("VMs", "vms", ""),
    ("vCPUs", "vcpu", ""),
    ("memory", "mem_mib", " MiB"),
    ("disks", "disk_mib", " MiB"),
)


def show(session: Session, project: str) -> None:
    with session.client() as client:
        quota = client.quotas.get(project)
    _print(session, quota)


def change(session: Session, project: str, asked: Mapping[str, str]) -> None:
    """Sets the limits that were given; the others stay."""
    if not asked:
        raise UsageFault("say what to limit: --vms, --vcpu, --mem or --disk")
    wanted = {name: _limit(name, text) for name, text in asked.items()}
    with session.client() as client:
        limits = client.quotas.get(project).limits.model_dump() | wanted
        try:
            checked = Quota.model_validate(limits)
        except ValueError as error:
            raise UsageFault(problems(error)) from error
        quota = client.quotas.set(project, checked)
    _print(session, quota)


def _limit(name: str, text: str) -> int | None:
    option = {"mem_mib": "--mem", "disk_mib": "--disk"}.get(name, f"--{name}")
    if text == NONE:
        return None
    if name in ("mem_mib", "disk_mib"):
        return mib(option, text)
    if not (text.isascii() and text.isdigit()):
        raise UsageFault(f"{option} {text!r}: write a number, or none")
    return int(text)


def _print(session: Session, quota: ProjectQuota) -> None:
    if session.output == "json":
        print_json({"item": as_json(quota)})
    elif session.output == "name":
        print(quota.project)
    else:
        table(("QUOTA", "USED", "LIMIT"), [_row(quota, *row) for row in ROWS])


def _row(quota: ProjectQuota, title: str, name: str, unit: str) -> tuple[str, str, str]:
    limit: int | None = getattr(quota.limits, name)
    used: int = getattr(quota.used, name)
    return title, f"{used}{unit}", "-" if limit is None else f"{limit}{unit}"
