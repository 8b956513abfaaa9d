"""The parts of a start: files and TAPs, a process, and the guest's first sign of life.

What a machine does in its step ``START``, without what it remembers of it.
"""

import errno
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from nexus.agent import disks, faults
from nexus.agent.command import Jail
from nexus.agent.errors import NetworkFailed, StageFailed
from nexus.agent.layout import VmPaths
from nexus.agent.nofollow import NoFile, opened
from nexus.agent.process import Vmm, spawn
from nexus.agent.record import Record
from nexus.agent.tools import Tools
from nexus.api.machines import Machine
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmFailure
from nexus.vmm.types import InstanceInfo

SWAPS = Path("/proc/swaps")
BOOT_TIMEOUT_S = 30.0
"""From spawn until the API says that the guest runs."""
BOOTED = b"Successfully started microvm"
QUIET_S = 0.25
LOG_BYTES = 1 << 16
"""So much of a log is read; a boot writes far less."""
ENDING_S = 1.0


class NoAnswer(Exception):
    """The VMM lives, but does not say in time that the guest runs."""


async def ensure_files(
    desired: Machine, paths: VmPaths, tools: Tools, uid: int | None, *, new_root: bool = False
) -> None:
    """Everything the VMM reads. Raises StageFailed("disk")."""
    ensure = partial(disks.ensure_files, new_root=new_root)
    await anyio.to_thread.run_sync(ensure, desired, paths, tools.store, uid)
    faults.point("after_disk")


async def ensure_taps(desired: Machine, paths: VmPaths, tools: Tools, uid: int | None) -> None:
    """The host's ends of the VM's NICs. Raises StageFailed("network")."""
    try:
        await tools.network.ensure_taps(desired, uid, paths.nics)
    except NetworkFailed as error:
        raise StageFailed("network", error.message, suggestion=error.suggestion) from error
    except OSError as error:
        cure = "look at the host's devices (ip -br link) and kernel log (dmesg)"
        raise StageFailed("network", f"no TAP: {error}", suggestion=cure) from error
    faults.point("after_tap")


async def prepare(
    desired: Machine, paths: VmPaths, tools: Tools, uid: int | None, *, new_root: bool = False
) -> None:
    """Files and TAPs side by side, and the root as a VMM wants to find it.

    Raises StageFailed; then there are no TAPs.
    """
    check_memory(desired.mem_mib, host_memory_mib())
    try:
        async with anyio.create_task_group() as both:
            files = partial(ensure_files, new_root=new_root)
            both.start_soon(files, desired, paths, tools, uid)
            both.start_soon(ensure_taps, desired, paths, tools, uid)
        disks.before_boot(paths, uid)
    except* StageFailed as failures:
        await tools.network.remove_taps(desired.id)
        raise first_of(failures) from None


def check_memory(wanted_mib: int, host_mib: int) -> None:
    """Raises StageFailed("configure") for a guest larger than the whole host.

    A VMM only maps its guest's memory, so it would start, and be killed once the guest uses it.
    """
    if wanted_mib > host_mib:
        raise StageFailed(
            "configure",
            f"the VM wants {wanted_mib} MiB of memory, this host has {host_mib} MiB in all",
            suggestion="make a VM with less memory (nexus run --mem), or add a larger host",
        )


def host_memory_mib() -> int:
    """Memory and swap of this host."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (pages >> 20) + swap_mib(SWAPS.read_text())


def swap_mib(swaps: str) -> int:
    """The sum of the sizes in /proc/swaps, which is in KiB."""
    return sum(int(line.split()[-3]) for line in swaps.splitlines()[1:]) >> 10


def launch(record: Record, paths: VmPaths, tools: Tools) -> Vmm:
    """Spawns the VMM. Raises StageFailed("spawn")."""
    jail = None
    if record.jailed and tools.jailer and record.uid is not None:
        jail = Jail(jailer=tools.jailer, uid=record.uid)
    try:
        boots = record.loaded_from is None
        command = tools.command(record.engine, paths, jail, boots=boots)
        return spawn(command, paths, tools.environment)
    except OSError as error:
        raise StageFailed(
            "spawn",
            f"{error.filename or 'the VMM'} cannot be started: {error.strerror}",
            suggestion=_spawn_cure(error, record),
        ) from error


def _spawn_cure(error: OSError, record: Record) -> str:
    if error.errno in (errno.ENOMEM, errno.EAGAIN):
        return "the host has no memory or processes left: free -m, or stop VMs (nexus ls)"
    if record.engine == "qemu":
        return "check that Nexus and Python are still where the agent was started from"
    if error.errno in (errno.EACCES, errno.ENOEXEC):
        return f"make it a program that root may execute: ls -la {error.filename}"
    return "put the program back, or set FC_BINARY and JAILER_BINARY, and restart the agent"


async def until_guest_runs(
    vmm: Vmm, record: Record, paths: VmPaths, client: VmmClient
) -> InstanceInfo | None:
    """What the VMM says once the guest runs; None for a VMM that ends before it does.

    Raises NoAnswer when it lives and says nothing in time.
    """
    try:
        with anyio.fail_after(BOOT_TIMEOUT_S):
            if record.engine == "firecracker":
                await _quiet_until_booted(vmm, paths)
            info = await client.wait_for_socket(BOOT_TIMEOUT_S, died=lambda: not vmm.alive)
            while info.state == "Not started":
                await anyio.sleep(0.002)
                info = await client.describe_instance()
            return info
    except (VmmFailure, TimeoutError) as error:
        if not vmm.alive:
            return None
        # The API answered, then hung up: the VMM is ending, and says why in its log.
        with anyio.move_on_after(ENDING_S):
            await vmm.exited.wait()
            return None
        raise NoAnswer(str(error) or "time-out") from error


async def _quiet_until_booted(vmm: Vmm, paths: VmPaths) -> None:
    """Until Firecracker's log says that it booted, or a moment has passed.

    A request that is under way when Firecracker fails to boot makes its API thread panic, and
    its seccomp filter then ends it before it has written down why: so nothing is asked before.
    """
    # What a VMM put in the place of its log tells nothing.
    with suppress(NoFile), opened(paths.vmm_log) as told, anyio.move_on_after(QUIET_S):
        # From the start each time: Firecracker writes it as it likes.
        while BOOTED not in os.pread(told, LOG_BYTES, 0):
            if not vmm.alive:
                return
            await anyio.sleep(0.001)


def first_of(failures: BaseExceptionGroup[StageFailed]) -> StageFailed:
    """The first of several failures of steps that were taken side by side."""
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if not isinstance(failure, StageFailed):
        raise failure
    return failure
