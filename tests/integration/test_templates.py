"""A template's VMs on real VMMs: a version that cannot boot halts, the next one rolls through."""

import hashlib
import json
from pathlib import Path

import pytest

from nexus.api.rollouts import RolloutCreate
from nexus.api.templates import TemplateCreate, TemplateInstantiate
from nexus.api.vms import Vm, VmSpec
from nexus.client import Client
from tests.integration.installation import Installation, machine_state, wait_for, wait_until_as
from tests.integration.test_networks import client_of

pytestmark = [pytest.mark.firecracker, pytest.mark.root]

TOO_SMALL = 16
"""The tiny kernel is linked at 16 MiB: with no more memory than that it cannot be loaded."""


def consoles_say(installation: Installation, vm: Vm, banners: int) -> bool:
    log = installation.data / "fc/vms" / vm.id / "console.log"
    return log.read_text().count("nexus-tiny ready") >= banners


def rolled(client: Client, **options: object) -> tuple[str, str, dict[str, str]]:
    """Its id, its end, and the VMs' states."""
    request = RolloutCreate.model_validate({"batch": 2, "steady_s": 0, **options})
    rollout = client.rollouts.create("fleet", request)
    ended = client.rollouts.wait(rollout.id, timeout_s=120)
    return rollout.id, ended.state, {vm.vm_name: vm.state for vm in client.rollouts.vms(ended.id)}


def test_a_new_kernel_rolls_over_a_fleet(
    firecracker_installation: Installation, tiny_kernel: Path, tmp_path: Path
) -> None:
    installation = firecracker_installation
    other = tmp_path / "kernel"
    other.write_bytes(tiny_kernel.read_bytes() + b"\0" * 64)
    installation.register("kernel", "tiny-next", other)
    before = machine_state(installation.data)
    with client_of(installation) as client:
        spec = VmSpec(kernel="tiny", mem_mib=32)
        client.templates.create(TemplateCreate(name="fleet", spec=spec))
        asked = TemplateInstantiate(name="f", count=4)
        made = client.templates.instantiate("fleet", asked, wait="running").items
        wait_for("banners", lambda: all(consoles_say(installation, vm, 1) for vm in made))

        client.templates.update("fleet", VmSpec(mem_mib=TOO_SMALL), note="too small")
        bad, ended, states = rolled(client)
        assert ended == "halted"
        assert states == {"f-1": "failed", "f-2": "failed", "f-3": "pending", "f-4": "pending"}
        error = client.vms.get("f-1").error
        assert error is not None
        assert next(iter(client.rollouts.vms(bad))).message == error.message
        client.rollouts.rollback(bad)
        assert client.rollouts.wait(bad, timeout_s=120).state == "rolled_back"
        back = [client.vms.get(vm.id) for vm in made]
        assert {(vm.state, vm.mem_mib) for vm in back} == {("running", 32)}
        assert [vm.pid for vm in back[2:]] == [vm.pid for vm in made[2:]]

        next_one = VmSpec(kernel="tiny-next", mem_mib=32, kernel_args="console=ttyS0 next=1")
        client.templates.update("fleet", next_one)
        shown = installation.cli("template", "diff", "fleet", "1")
        assert "kernel_args" in shown
        _, ended, states = rolled(client)
        assert (ended, set(states.values())) == ("done", {"done"})
        sha256 = hashlib.sha256(other.read_bytes()).hexdigest()
        for old in made:
            vm = client.vms.get(old.id)
            assert (vm.state, vm.template and vm.template.version) == ("running", 3)
            assert (vm.nics, vm.name, vm.kernel.sha256) == (old.nics, old.name, sha256)
            root = installation.data / "fc/vms" / vm.id / "root"
            assert hashlib.sha256((root / "kernel").read_bytes()).hexdigest() == sha256
            boot = json.loads((root / "vmm.json").read_text())["boot-source"]
            assert "next=1" in boot["boot_args"]
        wait_for("banners again", lambda: all(consoles_say(installation, vm, 2) for vm in made))
        client.vms.act("delete", [vm.id for vm in made], wait="deleted")
        client.templates.delete("fleet")
        client.images.delete("tiny-next")
    wait_until_as(before, installation.data)
