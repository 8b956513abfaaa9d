"""The engine is chosen by what runs guests, not by what opens."""

from pathlib import Path

import pytest

from nexus.vmm.errors import BinaryMissing, EngineUnavailable
from nexus.vmm.probe import Engine, KvmProbe, choose_engine, decide, probe

USABLE = KvmProbe(usable=True, opens=True, reason="hardware KVM by kvm_amd")
OPENS = KvmProbe(usable=False, opens=True, reason="kvm_pvm")
NOTHING = KvmProbe(usable=False, opens=False, reason="there is no /dev/kvm")
NO_FIRECRACKER: dict[Engine, BinaryMissing] = {
    "firecracker": BinaryMissing("no firecracker", suggestion="install it")
}
NO_QEMU: dict[Engine, BinaryMissing] = {
    "qemu": BinaryMissing("no qemu", suggestion="apt-get install qemu-system-x86")
}


def machine(root: Path, *modules: str, device: bool = True, flags: str = "fpu") -> Path:
    (root / "dev").mkdir()
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    for module in modules:
        (root / "sys/module" / module).mkdir(parents=True)
    if device:
        (root / "dev/kvm").touch()
    return root


@pytest.mark.parametrize("module", ["kvm_intel", "kvm_amd"])
def test_hardware_module_is_proof(tmp_path: Path, module: str) -> None:
    found = probe(root=machine(tmp_path, "kvm", module))
    assert found.usable
    assert module in found.reason


def test_nested_hardware_says_so(tmp_path: Path) -> None:
    found = probe(root=machine(tmp_path, "kvm_intel", flags="fpu vmx hypervisor"))
    assert found.usable
    assert "nested" in found.reason


@pytest.mark.parametrize("modules", [["kvm"], ["kvm", "kvm_pvm"], ["kvm_intel", "kvm_pvm"], []])
def test_a_device_that_opens_is_no_proof(tmp_path: Path, modules: list[str]) -> None:
    found = probe(root=machine(tmp_path, *modules))
    assert not found.usable
    assert found.opens


def test_no_device(tmp_path: Path) -> None:
    found = probe(root=machine(tmp_path, "kvm_intel", device=False))
    assert (found.usable, found.opens) == (False, False)
    assert "no /dev/kvm" in found.reason


def test_device_that_does_not_open(tmp_path: Path) -> None:
    root = machine(tmp_path, "kvm_intel", device=False)
    (root / "dev/kvm").mkdir()
    assert not probe(root=root).opens


def test_auto_takes_firecracker_on_hardware() -> None:
    assert decide("auto", USABLE, {}).engine == "firecracker"


@pytest.mark.parametrize("kvm", [OPENS, NOTHING])
def test_auto_takes_qemu_elsewhere(kvm: KvmProbe) -> None:
    choice = decide("auto", kvm, {})
    assert choice.engine == "qemu"
    assert choice.reason == kvm.reason


def test_auto_takes_qemu_without_firecracker() -> None:
    choice = decide("auto", USABLE, NO_FIRECRACKER)
    assert choice.engine == "qemu"
    assert "no firecracker" in choice.reason


def test_auto_without_any_says_what_to_install() -> None:
    with pytest.raises(EngineUnavailable) as caught:
        decide("auto", OPENS, NO_QEMU)
    assert caught.value.suggestion == "apt-get install qemu-system-x86"


def test_firecracker_by_name_where_kvm_merely_opens() -> None:
    choice = decide("firecracker", OPENS, {})
    assert choice.engine == "firecracker"
    assert "although kvm_pvm" in choice.reason


def test_firecracker_by_name_without_kvm() -> None:
    with pytest.raises(EngineUnavailable, match="no /dev/kvm"):
        decide("firecracker", NOTHING, {})


def test_wanted_but_not_installed() -> None:
    with pytest.raises(EngineUnavailable, match="no firecracker"):
        decide("firecracker", USABLE, NO_FIRECRACKER)
    with pytest.raises(EngineUnavailable, match="no qemu"):
        decide("qemu", USABLE, NO_QEMU)


def test_choose_looks_at_this_machine(tmp_path: Path) -> None:
    choice = choose_engine("auto", root=machine(tmp_path, device=False))
    assert choice.engine == "qemu"
