"""Prebooted templates on real VMMs: what took a boot is a clone from then on, and its own VM."""

from functools import partial

import pytest

from nexus.api.templates import TemplateCreate, TemplateInstantiate, TemplatePreboot
from nexus.api.vms import VmSpec
from nexus.client import Client
from tests.integration.installation import Installation, machine_state, wait_for, wait_until_as
from tests.integration.test_networks import client_of, is_up

pytestmark = [pytest.mark.firecracker, pytest.mark.qemu, pytest.mark.root]


def settled(client: Client) -> TemplatePreboot | None:
    found = [each for each in client.templates.preboots("quick") if each.state != "wanted"]
    return next((each for each in found if each.state in ("ready", "failed")), None)


def test_later_vms_go_on_where_one_has_booted(
    installation: Installation, guest: dict[str, object]
) -> None:
    before = machine_state(installation.data)
    with client_of(installation) as client:
        spec = VmSpec.model_validate(guest)
        client.templates.create(TemplateCreate(name="quick", spec=spec, preboot=True, pool=1))
        first = client.templates.instantiate("quick", TemplateInstantiate(name="first"))
        assert first.item.origin is None
        # Its host has one prebooted all the same, and a core to itself for that.
        client.vms.delete("first")
        ready = wait_for("it is prebooted", lambda: settled(client), timeout_s=120)
        assert (ready.state, ready.message) == ("ready", None)

        asked = TemplateInstantiate(name="later", count=2)
        made = client.templates.instantiate("quick", asked, wait="running").items
        assert {vm.origin and vm.origin.snapshot for vm in made} == {ready.snapshot_id}
        assert len({vm.nics[0].ip for vm in made}) == 2
        wait_for("one waits in the pool", lambda: client.templates.preboots("quick")[0].pooled)
        (waiting,) = client.vms.list(name="pool-", pooled=True)
        pooled = client.templates.instantiate(
            "quick", TemplateInstantiate(name="pooled"), wait="running"
        ).item
        assert (pooled.id, pooled.name, pooled.pid) == (waiting.id, "pooled", waiting.pid)
        made.append(pooled)
        if installation.engine == "qemu":
            for vm in made:
                wait_for(f"{vm.name} answers", partial(is_up, client, vm.name))
                wait_for("it is itself", partial(says, client, vm.name, vm.nics[0].ip))
        else:
            log = installation.data / "fc/vms" / made[0].id / "console.log"
            assert "nexus-tiny ready" not in log.read_text()
        client.vms.act("delete", [vm.id for vm in made], wait="deleted")
        client.templates.delete("quick")
        wait_for("the pool goes", lambda: not list(client.vms.list(pooled=True)))
    snapshots = installation.data / "fc" / "snapshots"
    wait_for("nothing of it is left", lambda: not [*snapshots.iterdir()])
    wait_until_as(before, installation.data)


def says(client: Client, name: str, ip: str) -> bool:
    script = "hostname; ip -o -4 addr show dev eth0"
    said = client.vms.exec(name, ["sh", "-c", script])
    return name in said.stdout and f" {ip}" in said.stdout
