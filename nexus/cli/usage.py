"""What the command on usage does."""

from nexus.api.usage import HostUse, ProjectUse, Space, Spaces
from nexus.cli.output import as_json, print_json, size, table
from nexus.cli.session import Session

_SPACES = ("DISKS", "VOLUMES", "SNAPSHOTS", "IMAGES")


def show(session: Session) -> None:
    """One table of projects, one of hosts: what is taken, of what was promised."""
    with session.client() as client:
        usage = client.usage()
    if session.output == "json":
        print_json({"item": as_json(usage)})
    elif session.output == "name":
        for project in usage.projects:
            print(project.project)
    else:
        headings = ("PROJECT", "VMS", "VCPU", "MEM", *_SPACES)
        table(headings, [_of_project(project) for project in usage.projects])
        print()
        table(("HOST", "VMS", *_SPACES, "FREE"), [_of_host(host) for host in usage.hosts])


def _of_project(use: ProjectUse) -> tuple[str, ...]:
    return use.project, str(use.vms), str(use.vcpu), _mib(use.mem_mib), *_spaces(use.space)


def _of_host(use: HostUse) -> tuple[str, ...]:
    free = f"{_mib(use.disk_available_mib)} of {_mib(use.disk_mib)}"
    return use.name, str(use.vms), *_spaces(use.space), free


def _spaces(spaces: Spaces) -> tuple[str, ...]:
    each = (spaces.disks, spaces.volumes, spaces.snapshots, spaces.images)
    return tuple(_space(space) for space in each)


def _space(space: Space) -> str:
    real = "?" if space.real_mib is None else _mib(space.real_mib)
    return f"{real} of {_mib(space.promised_mib)}"


def _mib(mib: int) -> str:
    return size(mib << 20) if mib else "0"
