"""Many VMs with terms, from the command line to real VMMs: healed, rebooted, and gone in time."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.installation import Installation, wait_for

pytestmark = [pytest.mark.firecracker, pytest.mark.root]


def test_a_fleet_heals_reboots_and_expires(tmp_path: Path, tiny_kernel: Path) -> None:
    with Installation(tmp_path / "d", 18197, "firecracker") as installation:
        installation.register("kernel", "tiny", tiny_kernel)
        body = {"name": "job", "count": 3, "kernel": "tiny", "mem_mib": 32, "tags": {"t": "x"}}
        body["restart_policy"] = "on-failure"
        with installation.http() as http:
            made = http.post("/v1/vms?wait=running", json=body).json()["items"]
        assert [vm["name"] for vm in made] == ["job-1", "job-2", "job-3"]

        os.kill(made[0]["pid"], signal.SIGKILL)
        healed = wait_for("it runs again", lambda: _if(installation, "job-1", restarts=1))
        assert healed["pid"] != made[0]["pid"]
        shown = installation.cli("show", "job-1")
        for word in ("on-failure", "vmm_crashed", "restarted"):
            assert word in shown

        consoles = [installation.data / "fc/vms" / vm["id"] / "console.log" for vm in made]
        wait_for("banners", lambda: all("ready" in file.read_text() for file in consoles))
        assert installation.cli("reboot", "--tag", "t=x", timeout=200).split() == [
            vm["name"] for vm in made
        ]
        assert _show(installation, "job-2")["boot"] == 2

        installation.cli("set", "job-3", "--ttl", "3s")
        wait_for("it is gone", lambda: "job-3" not in installation.cli("ls", "-o", "name"))
        installation.cli("rm", "-f", "--tag", "t=x", timeout=200)
        assert installation.cli("ls", "-o", "name") == ""
        assert list((installation.data / "fc" / "vms").iterdir()) == []


def _show(installation: Installation, name: str) -> dict[str, Any]:
    item: dict[str, Any] = json.loads(installation.cli("show", name, "-o", "json"))["item"]
    return item


def _if(installation: Installation, name: str, *, restarts: int) -> dict[str, Any] | None:
    vm = _show(installation, name)
    return vm if vm["state"] == "running" and vm["restarts"] == restarts else None
