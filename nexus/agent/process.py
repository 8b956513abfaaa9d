"""VMM processes: starting one, finding it again, watching and ending it."""

import errno
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from nexus.agent.layout import VmPaths, is_vm_id


@dataclass
class Vmm:
    """A live VMM. ``exited`` is set once its end was seen, by the task that runs ``watch``."""

    pid: int
    pidfd: int
    child: subprocess.Popen[bytes] | None
    """Set when it is our child: only then is its exit status known."""
    start_ticks: int | None = None
    """Set when it is not: the kernel takes a millisecond to tell it of a process that begins."""
    exited: anyio.Event = field(default_factory=anyio.Event)
    exit_code: int | None = None

    def kill(self) -> None:
        """SIGKILL to this very process, never to another that got its number. One that has ended
        is left alone."""
        if self.exited.is_set():
            return
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def watch(self) -> None:
        """Returns when the process has ended; reaps it when it is ours."""
        await anyio.wait_readable(self.pidfd)
        if self.child is not None:
            self.exit_code = self.child.wait()
        os.close(self.pidfd)
        self.pidfd = -1
        self.exited.set()

    @property
    def alive(self) -> bool:
        """Whether it lives: a dead one is told from the kernel, before the watcher was awake."""
        if self.exited.is_set():
            return False
        if self.child is not None:
            # Not poll(): only the watcher may reap.
            state = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return state is None
        return start_ticks(self.pid) == self.start_ticks


def spawn(command: Sequence[str], paths: VmPaths, environment: Mapping[str, str]) -> Vmm:
    """Starts a VMM in its directory and in a session of its own.

    Its serial console reads a FIFO that it holds open for writing too, so that it never ends, and
    appends to a file: neither needs the agent. Raises OSError when it cannot be started.
    """
    console_in = os.open(paths.console_in, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        console_log = os.open(paths.console_log, flags, 0o600)
        try:
            child = subprocess.Popen(
                command,
                cwd=paths.root,
                stdin=console_in,
                stdout=console_log,
                stderr=console_log,
                start_new_session=True,
                env=dict(environment),
            )
        finally:
            os.close(console_log)
    finally:
        os.close(console_in)
    # Our child cannot vanish before it is reaped, and that is done by the watcher alone.
    return Vmm(pid=child.pid, pidfd=os.pidfd_open(child.pid), child=child)


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine's boot; None when it is no more.

    With the pid it names a process for ever. A zombie is no more.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def vmm_pids() -> dict[str, list[int]]:
    """Every process that was started with ``--id`` and a VM's id: candidates for ``adopt``.

    Reads /proc once for all VMs.
    """
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--id" not in arguments[:-1]:
            continue
        vm_id = arguments[arguments.index(b"--id") + 1].decode("utf-8", "replace")
        if is_vm_id(vm_id):
            found.setdefault(vm_id, []).append(int(entry.name))
    return found


def adopt(pid: int, root: Path) -> Vmm | None:
    """Takes hold of a VMM started by an earlier agent.

    None unless the process lives and works in ``root``: the directory is compared as the kernel
    knows it, so a jailed VMM, for which it is ``/``, is recognised too.
    """
    ticks = start_ticks(pid)
    if ticks is None:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_ticks(pid) == ticks and _works_in(pid, root):
        return Vmm(pid=pid, pidfd=pidfd, child=None, start_ticks=ticks)
    os.close(pidfd)
    return None


def _works_in(pid: int, root: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").stat().st_ino == root.stat().st_ino and (
            Path(f"/proc/{pid}/cwd").stat().st_dev == root.stat().st_dev
        )
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.ENOTDIR):
            return False
        raise
