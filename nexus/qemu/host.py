"""What this host gives a machine: hardware KVM or not, and the TSC's rate."""

import os
import re

from nexus.qemu.commandline import Host

BINARY = "qemu-system-x86_64"
_KMSG_TSC = re.compile(rb"tsc: (?:Detected|Refined TSC clocksource calibration:) ([0-9.]+) MHz")
_MHZ = re.compile(r"^cpu MHz\s*:\s*([0-9.]+)", re.MULTILINE)


def look(*, sandbox: bool) -> Host:
    """Looks at this host; a fraction of a millisecond without hardware KVM."""
    from nexus.vmm.probe import probe

    kvm = probe().usable
    tsc_khz = None if kvm else _tsc_khz()
    return Host(binary=BINARY, kvm=kvm, tsc_khz=tsc_khz, sandbox=sandbox)


def _tsc_khz() -> int | None:
    """The rate of the TSC, which TCG passes on: from the kernel's log, else ``/proc/cpuinfo``."""
    found = _from_kernel_log()
    if found is not None:
        return found
    with open("/proc/cpuinfo") as file:  # noqa: PTH123 - pathlib is not imported otherwise
        match = _MHZ.search(file.read(8192))
    return round(float(match[1]) * 1000) if match else None


def _from_kernel_log() -> int | None:
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # The rate is said while the kernel starts: it is among the first records or gone.
        for _ in range(400):
            match = _KMSG_TSC.search(os.read(fd, 8192))
            if match:
                return round(float(match[1]) * 1000)
    except OSError:
        return None
    finally:
        os.close(fd)
    return None
