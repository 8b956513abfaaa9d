"""``nexus up`` and ``nexus down`` as their users see them."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.integration.installation import Installation, machine_state
from tests.parts import LinuxImages

pytestmark = [pytest.mark.root, pytest.mark.qemu]


def test_up_serves_and_down_leaves_the_machine_as_it_was(
    tmp_path: Path, linux_images: LinuxImages, free_port: int
) -> None:
    data = tmp_path / "d"
    before = machine_state(data)
    with Installation(data, free_port, "qemu") as one:
        assert one.ready["url"] == f"http://127.0.0.1:{free_port}"
        assert one.ready["engine"] == "qemu"
        assert Path(one.ready["token_file"]).stat().st_mode & 0o777 == 0o600
        assert (data / "run" / "agent.sock").stat().st_mode & 0o777 == 0o600
        with one.http() as http:
            names = {
                (image["kind"], image["name"]) for image in http.get("/v1/images").json()["items"]
            }
            assert names == {
                ("kernel", "debian-cloud"),
                ("initrd", "debian-cloud"),
                ("rootfs", "busybox"),
            }
            assert http.get("/readyz").status_code == 200
            assert http.get("/healthz").status_code == 200
            assert "/v1/vms" in http.get("/openapi.json").json()["paths"]
            assert http.get("/v1/hosts").json()["items"][0]["engine"] == "qemu"
            body = {"name": "kept", "rootfs": "busybox", "mem_mib": 128}
            vm = http.post("/v1/vms?wait=running", json=body).json()["item"]
        one.stop()
        os.kill(vm["pid"], 0)  # still runs
        one.up()
        with one.http() as http:
            again = http.get(f"/v1/vms/{vm['id']}").json()["item"]
            assert (again["state"], again["pid"]) == ("running", vm["pid"])
    assert machine_state(data) == before
    assert not data.exists()


def test_two_installations_side_by_side(
    tmp_path: Path, linux_images: LinuxImages, free_port: int
) -> None:
    before = machine_state(tmp_path / "a")
    with Installation(tmp_path / "a", free_port, "qemu") as first:
        with Installation(tmp_path / "b", free_port + 1, "qemu") as second:
            networks = []
            for one in (first, second):
                with one.http() as http:
                    networks.append(http.get("/v1/hosts").json()["items"][0]["network"])
                    body = {"name": "same", "rootfs": "busybox", "mem_mib": 128}
                    assert http.post("/v1/vms?wait=running", json=body).status_code == 201
            assert networks[0]["bridge"] != networks[1]["bridge"]
            assert networks[0]["cidr"] != networks[1]["cidr"]
        with first.http() as http:
            assert http.get("/v1/vms/same").json()["item"]["state"] == "running"
    assert machine_state(tmp_path / "a") == before


def test_a_taken_port_and_a_second_up_are_refused_with_a_cure(
    tmp_path: Path, linux_images: LinuxImages, free_port: int
) -> None:
    one = Installation(tmp_path / "d", free_port, "qemu")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        with pytest.raises(AssertionError, match=r"cannot listen .* choose another|--bind"):
            one.up()
    with one, pytest.raises(AssertionError, match="running already"):
        Installation(tmp_path / "d", free_port, "qemu").up()


def test_down_without_an_installation_says_so(tmp_path: Path) -> None:
    one = Installation(tmp_path / "none", 1, "qemu")
    done = subprocess.run(
        one.nexus("down", "--data", str(one.data)),
        env=one.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "no installation" in done.stderr) == (3, True)
    assert json.dumps(done.stdout) == '""'
