"""Whether hardware KVM runs stock guests here, and which engine that means.

A ``/dev/kvm`` that opens is no proof: KVM's emulating flavours (``kvm_pvm``) create VMs as well,
but run a stock kernel a thousand times too slowly, or not at all. Proof is the device *and* the
hardware's own module. Standard library only; costs well under a millisecond.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from nexus.vmm.errors import BinaryMissing, EngineUnavailable

Engine: TypeAlias = Literal["firecracker", "qemu"]
WantedEngine: TypeAlias = Literal["auto", "firecracker", "qemu"]

_HARDWARE_MODULES = ("kvm_intel", "kvm_amd")


@dataclass(frozen=True)
class KvmProbe:
    """``usable``: stock guests run at full speed. ``opens``: ``/dev/kvm`` at least answers."""

    usable: bool
    opens: bool
    reason: str


@dataclass(frozen=True)
class EngineChoice:
    engine: Engine
    reason: str


def probe(*, root: Path = Path("/")) -> KvmProbe:
    """Looks at ``dev/kvm``, ``sys/module`` and ``proc/cpuinfo`` under ``root``."""
    problem = _open_problem(root / "dev/kvm")
    if problem is not None:
        return KvmProbe(usable=False, opens=False, reason=problem)
    modules = root / "sys/module"
    hardware = [name for name in _HARDWARE_MODULES if (modules / name).is_dir()]
    if (modules / "kvm_pvm").is_dir():
        reason = "/dev/kvm opens, but kvm_pvm serves it: stock kernels do not run in it"
        return KvmProbe(usable=False, opens=True, reason=reason)
    if not hardware:
        reason = "/dev/kvm opens, but neither kvm_intel nor kvm_amd is loaded"
        return KvmProbe(usable=False, opens=True, reason=reason)
    nested = " (nested: this machine is a guest itself)" if _is_guest(root) else ""
    return KvmProbe(usable=True, opens=True, reason=f"hardware KVM by {hardware[0]}{nested}")


def choose_engine(
    wanted: WantedEngine = "auto",
    *,
    firecracker: Path | None = None,
    root: Path = Path("/"),
) -> EngineChoice:
    """The engine for this machine, and why.

    ``firecracker`` is an explicit path of the binary. Raises EngineUnavailable when the wanted
    engine, or with ``auto`` every engine, lacks something.
    """
    from nexus.vmm.binaries import find_firecracker, find_qemu

    kvm = probe(root=root)
    missing: dict[Engine, BinaryMissing] = {}
    try:
        find_firecracker(firecracker)
    except BinaryMissing as error:
        missing["firecracker"] = error
    try:
        find_qemu()
    except BinaryMissing as error:
        missing["qemu"] = error
    return decide(wanted, kvm, missing)


def decide(
    wanted: WantedEngine, kvm: KvmProbe, missing: dict[Engine, BinaryMissing]
) -> EngineChoice:
    """The rule of ``choose_engine``: the same answer for the same facts.

    Asked for by name, firecracker is accepted where KVM merely opens: it runs guests that are
    made for that, such as the tiny test guest.
    """
    if wanted == "qemu":
        _require("qemu", missing)
        return EngineChoice("qemu", "asked for")
    if wanted == "firecracker":
        _require("firecracker", missing)
        if not kvm.opens:
            raise EngineUnavailable(
                f"firecracker cannot run here: {kvm.reason}",
                suggestion="choose engine qemu, which needs no KVM",
            )
        warning = "" if kvm.usable else f", although {kvm.reason}"
        return EngineChoice("firecracker", f"asked for{warning}")
    if kvm.usable and "firecracker" not in missing:
        return EngineChoice("firecracker", kvm.reason)
    _require("qemu", missing)
    if kvm.usable:
        return EngineChoice("qemu", f"{kvm.reason}, but {missing['firecracker'].message}")
    return EngineChoice("qemu", kvm.reason)


def _require(engine: Engine, missing: dict[Engine, BinaryMissing]) -> None:
    if engine in missing:
        error = missing[engine]
        raise EngineUnavailable(
            f"engine {engine} is not installed: {error.message}", suggestion=error.suggestion
        )


def _open_problem(device: Path) -> str | None:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "there is no /dev/kvm: virtualisation is off, or no KVM module is loaded"
        if error.errno in (errno.EACCES, errno.EPERM):
            return "/dev/kvm may not be opened by this user: join the group kvm"
        return f"/dev/kvm does not open: {error.strerror}"
    return None


def _is_guest(root: Path) -> bool:
    try:
        with (root / "proc/cpuinfo").open() as cpuinfo:
            return any(line.startswith("flags") and " hypervisor" in line for line in cpuinfo)
    except OSError:
        return False
