"""How a VMM ended, judged from its exit status, its log and what was asked of it."""

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from nexus.agent.errors import LOG_TAIL_LINES
from nexus.agent.nofollow import NoFile, opened
from nexus.api.endings import ExitCause
from nexus.api.vms import VmError

CONSOLE_LINES = 200
"""So much of a boot's console is searched for a panic: its trace is some 50 lines long."""
_TAIL_BYTES = 64 << 10
_BEFORE_PANIC = 5
_CLEAN = "exiting successfully"
_REBOOTED = "Vmm is stopping. guest-reset"
"""Said by nexus-qemu. A guest of Firecracker has no other way to power off than a reset."""
_FAULT = re.compile(r"(?:\berror|Error): (?P<fault>.+)$")
_BAD_CONFIG = "Configuration for VMM from one single json failed"

# Linux, kernel/panic.c; with a time stamp unless printk.time=0.
_PANIC = re.compile(
    r"^(?:\[[ \d.]+\](?:\[ *[TC]\d+\])? )?Kernel panic - not syncing: (?P<words>.+)$"
)
_WENT_ON = re.compile(r"^(?:\[[ \d.]+\](?:\[ *[TC]\d+\])? )?reboot: ")
_INITRD = re.compile(r"^nexus-initrd: (?P<words>.+)$")
_NO_START = ("unable to mount root", "no working init found", "no init found", "requested init")

_CURES = (
    ("elf header", "the kernel must be an uncompressed ELF vmlinux: nexus image ls --kind kernel"),
    ("not an elf", "the kernel must be an uncompressed ELF vmlinux: nexus image ls --kind kernel"),
    ("kernel", "check the kernel image, an ELF vmlinux for x86-64: nexus image ls --kind kernel"),
    ("initrd", "check the initrd image: nexus image ls --kind initrd"),
    ("/dev/kvm", "check that /dev/kvm exists and may be opened, or use engine qemu"),
    ("KVM", "this machine's KVM does not run that guest: use engine qemu"),
    ("tap", "check the TAP devices on the host (ip -br link)"),
    ("memory", "free memory on the host (free -m), stop VMs, or make the VM smaller (--mem)"),
    ("GenericError", "the guest's kernel crashed the virtual CPU: use engine qemu, or its own log"),
    ("cannot run qemu", "install it on the host: apt-get install qemu-system-x86"),
    ("no space left", "free space on the host (df -h), or delete VMs"),
)

_PANIC_CURES = (
    ("root device", "check root= in its kernel arguments and its root disk"),
    ("unable to mount root", "give it an initrd that has the disk's drivers, and a root disk"),
    ("cannot mount", "check that the rootfs image holds a file system of that kind"),
    ("init found", "name the program to start with init= in the kernel arguments"),
    ("memory", "make the VM with more memory (nexus run --mem)"),
)


_IN_WORDS: dict[ExitCause, str] = {
    "guest_poweroff": "the guest powered itself off",
    "guest_reboot": "the guest rebooted",
    "guest_panic": "the guest's kernel panicked",
    "stopped": "the guest powered off when it was asked to",
    "killed": "the VMM was killed",
    "crashed": "the VMM ended by itself",
}


@dataclass(frozen=True)
class Ending:
    cause: ExitCause
    error: VmError | None = None

    @property
    def message(self) -> str:
        """How it ended, in one sentence."""
        return self.error.message if self.error else _IN_WORDS[self.cause]


def how_it_ended(
    *,
    started: bool,
    stop_asked: bool,
    killed: bool,
    exit_code: int | None,
    vmm_log: list[str],
    console: list[str],
    name: str = "NAME",
) -> Ending:
    """``started``: the guest had been seen running. ``exit_code`` is None for a VMM that an
    earlier agent started; then its log decides. ``console`` is of this boot alone; ``name`` is
    the VM's, for what to type next."""
    if killed:
        return Ending("killed")
    if stop_asked:
        return Ending("stopped")
    said_goodbye = any(_CLEAN in line for line in vmm_log)
    if exit_code == 0 or (exit_code is None and said_goodbye):
        panic = panic_of(console, name)
        if panic is not None:
            return Ending("guest_panic", panic)
        rebooted = any(_REBOOTED in line for line in vmm_log)
        return Ending("guest_reboot" if rebooted else "guest_poweroff")
    fault = fault_of(vmm_log) or fault_of(console)
    if started:
        how = _in_words(exit_code)
        return Ending(
            "crashed",
            VmError(
                stage="run",
                message=f"the VMM ended by itself{how}",
                fault_message=fault,
                suggestion=cure_for(fault or "") or _cure_for_signal(exit_code, name),
                log_tail=vmm_log or console[-LOG_TAIL_LINES:],
            ),
        )
    refused = any(_BAD_CONFIG in line for line in vmm_log)
    return Ending(
        "crashed",
        VmError(
            stage="configure" if refused else "boot",
            message=f"the VMM ended before the guest ran{_in_words(exit_code)}",
            fault_message=fault,
            suggestion=cure_for(fault or "") or f"nexus logs {name} --source vmm",
            log_tail=vmm_log or console[-LOG_TAIL_LINES:],
        ),
    )


def panic_of(console: list[str], name: str) -> VmError | None:
    """The panic of the guest's kernel, if that is what its console ends with.

    A panic with ``panic=1`` resets the machine, and a VMM that is reset ends with status 0, as for
    a power-off: only the console tells them apart. A guest's words are no proof, but whoever
    writes them harms only his own guest.
    """
    lines = [line.rstrip() for line in console]
    found = next((i for i in reversed(range(len(lines))) if _PANIC.match(lines[i])), None)
    if found is None or any(_WENT_ON.match(line) for line in lines[found:]):
        return None
    said = _PANIC.match(lines[found])
    words = said["words"] if said else ""
    before = lines[max(0, found - _BEFORE_PANIC) : found]
    initrd = next((m["words"] for line in reversed(before) if (m := _INITRD.match(line))), None)
    why = f"{initrd} ({words})" if initrd else words
    at_boot = initrd is not None or any(sign in words.lower() for sign in _NO_START)
    cure = next((cure for sign, cure in _PANIC_CURES if sign in why.lower()), None)
    read = f"nexus logs {name} --tail 100"
    first = max(0, found - _BEFORE_PANIC)
    return VmError(
        stage="boot" if at_boot else "run",
        message=f"the guest's kernel panicked: {why}",
        suggestion=f"{cure}; {read}" if cure else read,
        log_tail=[line for line in lines[first : first + LOG_TAIL_LINES] if line],
    )


def _cure_for_signal(exit_code: int | None, name: str) -> str:
    again = f"nexus start {name} (its disk is kept)"
    if exit_code == -signal.SIGKILL:
        return (
            "somebody killed the VMM; when it was the kernel for want of memory, dmesg on the "
            f"host says so: free some, then {again}"
        )
    return again


def fault_of(lines: list[str]) -> str | None:
    """The VMM's own words for what went wrong, without time and thread."""
    for line in reversed(lines):
        found = _FAULT.search(line)
        if found:
            return found["fault"].strip()
    return None


def cure_for(fault: str) -> str | None:
    return next((cure for sign, cure in _CURES if sign.lower() in fault.lower()), None)


def last_lines(file: Path, count: int = LOG_TAIL_LINES, *, since: int = 0) -> list[str]:
    """The last lines of a log, read from its end; nothing when there is none, or what a
    VMM put in its place.

    ``since`` is where to begin at the earliest, in bytes; a log that is shorter begins anew.
    """
    try:
        with opened(file) as log:
            size = os.fstat(log).st_size
            first = max(0, size - _TAIL_BYTES, since if since <= size else 0)
            data = os.pread(log, _TAIL_BYTES, first)
    except (FileNotFoundError, NoFile):
        return []
    lines = data.decode("utf-8", "replace").splitlines()
    return [line[:1000] for line in lines[-count:]]


def _in_words(exit_code: int | None) -> str:
    if exit_code is None:
        return ""
    return f" by signal {-exit_code}" if exit_code < 0 else f" with exit code {exit_code}"
