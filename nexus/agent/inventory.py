"""What this host is and what it has left."""

import os
import platform
import socket
from functools import cache
from importlib import metadata
from pathlib import Path

from nexus.agent.meminfo import meminfo
from nexus.agent.settings import Settings
from nexus.agent.tools import Tools
from nexus.api.hosts import Capacity, Inventory

_MIB = 1 << 20


async def inventory(settings: Settings, tools: Tools) -> Inventory:
    """What the manager registers the host by."""
    return Inventory(
        host_id=tools.network.installation.id,
        hostname=socket.gethostname(),
        engine=tools.engine,
        engine_reason=tools.engine_reason,
        engine_version=tools.engine_version,
        network=tools.network.wire,
        networks_in_use=await tools.network.in_use(),
        run_dir=str(settings.run_dir),
        agent_version=_version(),
    )


def capacity(settings: Settings, vms: int) -> Capacity:
    """CPUs this process may use, memory as the kernel counts it, the run directory's disk."""
    memory = meminfo()
    disk = os.statvfs(settings.run_dir)
    return Capacity(
        vcpus=len(os.sched_getaffinity(0)),
        mem_mib=memory["MemTotal"] // 1024,
        mem_available_mib=memory["MemAvailable"] // 1024,
        disk_mib=disk.f_blocks * disk.f_frsize // _MIB,
        disk_available_mib=disk.f_bavail * disk.f_frsize // _MIB,
        vms=vms,
    )


@cache
def cpu_model() -> str:
    """The model of this host's CPUs, as the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version() -> str:
    try:
        return metadata.version("nexus-microvm")
    except metadata.PackageNotFoundError:
        return "0+checkout"
