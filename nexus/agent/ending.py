"""How a VMM ended, judged from its exit status, its log and what was asked of it."""

import re
from dataclasses import dataclass
from pathlib import Path

from nexus.agent.errors import LOG_TAIL_LINES
from nexus.api.machines import ExitCause
from nexus.api.vms import VmError

_TAIL_BYTES = 16 << 10
_CLEAN = "exiting successfully"
_FAULT = re.compile(r"(?:\berror|Error): (?P<fault>.+)$")
_BAD_CONFIG = "Configuration for VMM from one single json failed"

_CURES = (
    ("elf header", "the kernel must be an uncompressed ELF vmlinux"),
    ("kernel image", "check the kernel image: an ELF vmlinux for x86-64"),
    ("/dev/kvm", "check that /dev/kvm exists and may be opened, or use engine qemu"),
    ("KVM", "this machine's KVM does not run that guest: use engine qemu"),
    ("tap", "check the TAP devices on the host (ip -br link)"),
    ("memory", "give the VM less memory, or free some on the host"),
    ("GenericError", "the guest's kernel crashed the virtual CPU: use engine qemu, or its own log"),
)


@dataclass(frozen=True)
class Ending:
    cause: ExitCause
    error: VmError | None = None


def how_it_ended(
    *,
    started: bool,
    stop_asked: bool,
    killed: bool,
    exit_code: int | None,
    vmm_log: list[str],
    console: list[str],
) -> Ending:
    """``started``: the guest had been seen running. ``exit_code`` is None for a VMM that an
    earlier agent started; then its log decides."""
    if killed:
        return Ending("killed")
    if stop_asked:
        return Ending("stopped")
    said_goodbye = any(_CLEAN in line for line in vmm_log)
    if exit_code == 0 or (exit_code is None and said_goodbye):
        return Ending("guest_poweroff")
    fault = fault_of(vmm_log) or fault_of(console)
    if started:
        how = _in_words(exit_code)
        return Ending(
            "crashed",
            VmError(
                stage="run",
                message=f"the VMM ended by itself{how}",
                fault_message=fault,
                suggestion=cure_for(fault or "") or "start the VM again; its disk is kept",
                log_tail=vmm_log or console,
            ),
        )
    refused = any(_BAD_CONFIG in line for line in vmm_log)
    return Ending(
        "crashed",
        VmError(
            stage="configure" if refused else "boot",
            message=f"the VMM ended before the guest ran{_in_words(exit_code)}",
            fault_message=fault,
            suggestion=cure_for(fault or "") or "read the VMM's log",
            log_tail=vmm_log or console,
        ),
    )


def fault_of(lines: list[str]) -> str | None:
    """The VMM's own words for what went wrong, without time and thread."""
    for line in reversed(lines):
        found = _FAULT.search(line)
        if found:
            return found["fault"].strip()
    return None


def cure_for(fault: str) -> str | None:
    return next((cure for sign, cure in _CURES if sign.lower() in fault.lower()), None)


def last_lines(file: Path, count: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a log, read from its end; nothing when there is none."""
    try:
        with file.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - _TAIL_BYTES))
            data = log.read(_TAIL_BYTES)
    except FileNotFoundError:
        return []
    lines = data.decode("utf-8", "replace").splitlines()
    return [line[:1000] for line in lines[-count:]]


def _in_words(exit_code: int | None) -> str:
    if exit_code is None:
        return ""
    return f" by signal {-exit_code}" if exit_code < 0 else f" with exit code {exit_code}"
