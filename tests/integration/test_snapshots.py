"""A snapshot from the command line to real VMMs: taken, cloned, gone back to, deleted."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nexus.api.vm_snapshots import SnapshotClone
from nexus.client import Client
from tests.integration.installation import Installation, machine_state, wait_for, wait_until_as
from tests.integration.test_networks import client_of

pytestmark = [pytest.mark.root]


def answer(installation: Installation, *arguments: str) -> Any:
    return json.loads(installation.cli(*arguments, "-o", "json"))


def counted(client: Client, installation: Installation, vm_id: str) -> int:
    """What the tiny guest has counted to, by its own words."""
    log: Path = installation.data / "fc" / "vms" / vm_id / "console.log"
    before = len(said(log))
    with client.vms.console(vm_id) as console:
        console.send(b"c")
        return int(wait_for("a count", lambda: said(log)[before:])[0])


def said(log: Path) -> list[str]:
    # With its line's end: not one that is still being written.
    return re.findall(r"count=(\d+)\n", log.read_text()) if log.exists() else []


@pytest.mark.firecracker
def test_clones_go_on_and_so_does_their_vm(
    firecracker_installation: Installation, tmp_path: Path
) -> None:
    installation = firecracker_installation
    before = machine_state(installation.data)
    shelf = installation.data / "fc" / "snapshots"
    with installation.http() as http, client_of(installation) as client:
        body = {"name": "first", "kernel": "tiny", "mem_mib": 32, "track_dirty_pages": True}
        vm = http.post("/v1/vms?wait=running", json=body).json()["item"]
        log = installation.data / "fc" / "vms" / vm["id"] / "console.log"
        wait_for("it is up", lambda: "ready" in log.read_text())
        wait_for("it counts", lambda: counted(client, installation, vm["id"]) > 0)

        taken = answer(installation, "snapshot", "create", "first", "base")["item"]
        assert (taken["state"], taken["error"]) == ("ready", None), taken
        assert taken["pause_ms"] > 0
        at_least = counted(client, installation, vm["id"])
        made = answer(installation, "snapshot", "clone", "base", "--name", "job", "--count", "3")
        clones = made["items"]
        assert [each["name"] for each in clones] == ["job-1", "job-2", "job-3"]
        assert {each["state"] for each in clones} == {"running"}
        everyone = [vm, *clones]
        assert len({each["nics"][0]["ip"] for each in everyone}) == 4
        assert len({each["nics"][0]["mac"] for each in everyone}) == 4
        for each in clones:
            assert counted(client, installation, each["id"]) > 0, "its counter goes on"

        wait_for("it counts on", lambda: counted(client, installation, vm["id"]) > at_least + 4)
        back = answer(installation, "snapshot", "restore", "first", "base")["item"]
        assert (back["state"], back["boot"], back["origin"]["name"]) == ("running", 2, "base")
        assert back["nics"] == vm["nics"]
        assert counted(client, installation, vm["id"]) <= at_least + 4, "it is as it was then"

        # Out into a file and in again: what is made of it goes on all the same.
        archive = tmp_path / "base.tar"
        installation.cli("snapshot", "export", "base", str(archive))
        # What changed since it was put back, made whole when what it was put back to goes.
        diff = client.vms.snapshot("first", name="diff", kind="diff")
        assert (diff.state, diff.parent_id, diff.needs_parent) == ("ready", taken["id"], True)
        client.snapshots.delete("base", merge=True)
        assert not client.snapshots.get("diff").needs_parent
        (of_diff,) = client.snapshots.clone("diff", SnapshotClone(name="of-diff"), wait="running")
        assert counted(client, installation, of_diff.id) > 0

        installation.cli("snapshot", "import", str(archive), "--name", "again")
        (late,) = client.snapshots.clone("again", SnapshotClone(name="late"), wait="running")
        assert counted(client, installation, late.id) > 0

        installation.cli("rm", "-f", "first", "job-1", "late", "of-diff")
        assert installation.cli("snapshot", "rm", "again", "diff") == "again\ndiff\n"
        assert list(shelf.iterdir()) == []
        assert counted(client, installation, clones[1]["id"]) > 0, "clones stay"
        installation.cli("rm", "-f", "job-2", "job-3")
    wait_until_as(before, installation.data)
