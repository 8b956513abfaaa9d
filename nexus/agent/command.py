"""The command that starts a VMM: bare, in a jail, in a systemd scope."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nexus.agent.layout import API_SOCKET, VMM_CONFIG, VMM_LOG, VmPaths

SYSTEMD_BOOTED = Path("/run/systemd/system")
CGROUP2 = Path("/sys/fs/cgroup/cgroup.controllers")


@dataclass(frozen=True)
class Jail:
    """How Firecracker is jailed: its own uid and gid in a directory it takes for ``/``."""

    jailer: Path
    uid: int


def vmm_command(
    vmm: Sequence[str],
    paths: VmPaths,
    *,
    boots: bool = True,
    jail: Jail | None = None,
    scope: bool = False,
    cgroup_version: int = 2,
) -> list[str]:
    """The argument list. Its ``--id`` and working directory are what the VMM is found by again.

    ``scope`` puts it into ``fc-{id}.scope``, so that systemd does not end it with the agent;
    systemd-run keeps the pid, and so does the jailer. One that does not boot waits for a snapshot.
    """
    own = ["--api-sock", API_SOCKET]
    if boots:
        own += ["--config-file", VMM_CONFIG]
    own += ["--log-path", VMM_LOG, "--level", "Info"]
    if jail is None:
        command = [*vmm, "--id", paths.vm_id, *own]
    else:
        command = [str(jail.jailer), "--id", paths.vm_id, "--exec-file", vmm[0]]
        command += ["--uid", str(jail.uid), "--gid", str(jail.uid)]
        command += ["--chroot-base-dir", str(paths.dir)]
        command += ["--cgroup-version", str(cgroup_version), "--", *own]
    if scope:
        unit = f"fc-{paths.vm_id}"
        command = ["systemd-run", "--scope", "--quiet", "--collect", "--unit", unit, "--", *command]
    return command


def choose_jail_uid(vm_id: str, taken: set[int]) -> int:
    """A uid for one VM: derived from its id, and no other VM's.

    From 1,500,000,000 up: above what distributions, containers and directories hand out.
    """
    first, count = 1_500_000_000, 1 << 28
    offset = int(vm_id.replace("-", "")[-12:], 16) % count
    while first + offset in taken:
        offset = (offset + 1) % count
    return first + offset
