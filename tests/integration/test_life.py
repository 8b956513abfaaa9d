"""Create → running → pause → resume → stop → start → delete, and nothing is left behind."""

import json
import os
import signal

import httpx
import pytest

from tests.integration.installation import Installation, machine_state, wait_for

pytestmark = [pytest.mark.root, pytest.mark.firecracker, pytest.mark.qemu]

ROUNDS = 20
BANNER = {"firecracker": "nexus-tiny ready", "qemu": "nexus-guest ready"}


def wait_for_banner(installation: Installation, http: httpx.Client, vm_id: str) -> None:
    banner = BANNER[installation.engine]
    log = f"/v1/vms/{vm_id}/logs?source=console"
    wait_for("the guest's banner", lambda: banner in http.get(log).text)


def test_twenty_lives_through_rest_leave_nothing(
    installation: Installation, guest: dict[str, object]
) -> None:
    before = machine_state(installation.data)
    with installation.http() as http:
        for number in range(ROUNDS):
            body = {"name": f"life-{number}", **guest}
            created = http.post("/v1/vms?wait=running", json=body)
            assert created.status_code == 201, created.text
            vm = created.json()["item"]
            assert (vm["state"], vm["id"]) == ("running", created.json()["id"])
            url = f"/v1/vms/{vm['id']}"
            # Forced from the second round on: a graceful stop waits for Linux to have booted.
            force = "true" if number else "false"
            if not number:
                wait_for_banner(installation, http, vm["id"])
            for action, state in (
                ("pause?wait=paused", "paused"),
                ("resume?wait=running", "running"),
                (f"stop?wait=stopped&force={force}", "stopped"),
                ("start?wait=running", "running"),
            ):
                answer = http.post(f"{url}/{action}")
                assert (answer.status_code, answer.json()) == (200, {"ok": True}), answer.text
                assert http.get(url).json()["item"]["state"] == state
            assert http.delete(f"{url}?wait=deleted").json() == {"ok": True}
            assert http.get(url).status_code == 404
    assert machine_state(installation.data) == before


def test_lives_through_the_cli_leave_nothing(installation: Installation) -> None:
    before = machine_state(installation.data)
    if installation.engine == "firecracker":
        # The tiny guest is a kernel of its own and ignores the disk.
        arguments = ["busybox", "--kernel", "tiny", "--mem", "32"]
    else:
        arguments = ["busybox", "--mem", "128"]
    for number in range(ROUNDS):
        # Forced from the second round on: a graceful stop waits for Linux to have booted.
        _one_life_through_the_cli(installation, f"by-cli-{number}", arguments, force=number > 0)
        assert machine_state(installation.data) == before


def _one_life_through_the_cli(
    installation: Installation, name: str, arguments: list[str], *, force: bool
) -> None:
    # The first one as a user starts commands; all of them are processes of their own.
    cli = installation.cli if not force else installation.forked_cli
    cli("run", *arguments, "--name", name, "--wait")
    assert name in cli("ls")
    (row,) = json.loads(cli("ls", "-o", "json"))["items"]
    assert (row["name"], row["state"]) == (name, "running")
    cli("pause", name)
    assert json.loads(cli("show", name, "-o", "json"))["item"]["state"] == "paused"
    cli("resume", name)
    if not force:
        wait_for("the guest's banner", lambda: BANNER[installation.engine] in cli("logs", name))
    cli("stop", name, *(["--force"] if force else []))
    assert json.loads(cli("show", name, "-o", "json"))["item"]["state"] == "stopped"
    cli("start", name)
    cli("rm", "-f", name)
    cli("show", name, code=3)


def test_a_guest_that_powers_off_is_stopped_and_can_start_again(
    installation: Installation, guest: dict[str, object]
) -> None:
    with installation.http() as http:
        vm = http.post("/v1/vms?wait=running", json={"name": "off", **guest}).json()["item"]
        url = f"/v1/vms/{vm['id']}"
        wait_for_banner(installation, http, vm["id"])
        fifo = installation.data / "fc" / "vms" / vm["id"] / "console.in"
        with fifo.open("w") as console:
            console.write("q" if installation.engine == "firecracker" else "\npoweroff\n")
        wait_for("stopped", lambda: http.get(url).json()["item"]["state"] == "stopped")
        reasons = [event["reason"] for event in http.get(f"{url}/events").json()["items"]]
        assert "guest_poweroff" in reasons
        assert http.post(f"{url}/start?wait=running").json() == {"ok": True}
        assert http.delete(f"{url}?wait=deleted").json() == {"ok": True}


def test_a_killed_vmm_is_an_error_with_its_reason(
    installation: Installation, guest: dict[str, object]
) -> None:
    with installation.http() as http:
        vm = http.post("/v1/vms?wait=running", json={"name": "crash", **guest}).json()["item"]
        url = f"/v1/vms/{vm['id']}"
        os.kill(http.get(url).json()["item"]["pid"], signal.SIGKILL)
        wait_for("error", lambda: http.get(url).json()["item"]["state"] == "error")
        error = http.get(url).json()["item"]["error"]
        assert (error["stage"], bool(error["suggestion"])) == ("run", True)
        assert http.delete(f"{url}?wait=deleted").json() == {"ok": True}
