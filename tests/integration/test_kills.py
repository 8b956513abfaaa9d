"""kill -9 of the agent or the manager at any moment of a create: one VM, nothing doubled."""

import os
import random
import signal
import threading

import httpx
import pytest

from tests.integration.installation import Installation, machine_state, service_pid, wait_for

pytestmark = [pytest.mark.root, pytest.mark.firecracker, pytest.mark.qemu]

KILLS = 6
LATEST_KILL_S = 0.12


@pytest.mark.parametrize("victim", ["nexus.agent", "nexus.manager"])
def test_killed_in_the_middle_of_a_create(
    installation: Installation, guest: dict[str, object], victim: str
) -> None:
    moments = random.Random(7)  # noqa: S311
    before = machine_state(installation.data)
    with installation.http() as http:
        for number in range(KILLS):
            # Killed often, a service rests before it is started again.
            wait_for("both services are there", lambda: _ready(http))
            pid = wait_for(f"{victim} runs", lambda: service_pid(installation, victim))
            delay_s = moments.uniform(0, LATEST_KILL_S)
            killer = threading.Timer(delay_s, os.kill, (pid, signal.SIGKILL))
            killer.start()
            name = f"kill-{number}"
            vm_id = _create(http, {"name": name, **guest})
            killer.join()
            if vm_id is None:
                # The manager died before it answered: the row is there, or it never was.
                wait_for("the manager is back", lambda: _ready(http))
                rows = http.get("/v1/vms", params={"name": name}).json()["items"]
                if not rows:
                    continue
                vm_id = rows[0]["id"]
            url = f"/v1/vms/{vm_id}"
            wait_for(f"{name} runs", lambda url=url: _state(http, url) == "running")
            state = machine_state(installation.data)
            vmms = [p for p in state["processes"] if f"--id {vm_id}" in p]
            assert len(vmms) == 1, vmms
            assert len(state["links"]) == len(before["links"]) + 1
            assert http.delete(f"{url}?wait=deleted").status_code == 200
            assert machine_state(installation.data) == before


def test_vms_outlive_both_services(installation: Installation, guest: dict[str, object]) -> None:
    with installation.http() as http:
        vm = http.post("/v1/vms?wait=running", json={"name": "steady", **guest}).json()["item"]
        url = f"/v1/vms/{vm['id']}"
        pid = http.get(url).json()["item"]["pid"]
        for victim in ("nexus.agent", "nexus.manager"):
            old = wait_for(victim, lambda victim=victim: service_pid(installation, victim))
            os.kill(old, signal.SIGKILL)
            wait_for(
                "a new one",
                lambda victim=victim, old=old: service_pid(installation, victim) not in (None, old),
            )
            wait_for("ready", lambda: _ready(http))
            item = http.get(url).json()["item"]
            assert (item["state"], item["pid"]) == ("running", pid)
        assert http.post(f"{url}/pause?wait=paused").json() == {"ok": True}
        assert http.delete(f"{url}?wait=deleted").json() == {"ok": True}


def _create(http: httpx.Client, body: dict[str, object]) -> str | None:
    try:
        answer = http.post("/v1/vms", json=body)
    except httpx.TransportError:
        return None
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _state(http: httpx.Client, url: str) -> str:
    try:
        return str(http.get(url).json()["item"]["state"])
    except httpx.TransportError:
        return "no answer"
