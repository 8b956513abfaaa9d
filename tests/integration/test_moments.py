"""Snapshots of a Linux guest that never stops writing: each is one moment, disk and memory."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from nexus.client import Client
from tests.integration.installation import Installation, wait_for

pytestmark = [pytest.mark.root, pytest.mark.qemu]

SNAPSHOTS = 50
CHAIN = "/root/chain"
WRITER = f"""
n=0; link=begin
while :; do
  n=$((n+1)); link=$(echo "$n $link" | sha256sum | cut -c1-16); echo "$n $link" >> {CHAIN}
done
"""
"""Each line is made of the one before, which the writer has in its memory: a line that is lost,
written twice, torn or of another moment breaks the chain."""


def unbroken(chain: str) -> int:
    """How many lines the chain has. Raises AssertionError at the first that does not follow."""
    link = "begin"
    lines = chain.splitlines()
    for number, line in enumerate(lines, 1):
        link = hashlib.sha256(f"{number} {link}\n".encode()).hexdigest()[:16]
        assert line == f"{number} {link}"
    return len(lines)


def read_chain(client: Client, name: str) -> str:
    with client.vms.get_file(name, CHAIN) as file:
        return file.read().decode()


def post(http: httpx.Client, path: str, **body: object) -> dict[str, object]:
    answer = http.post(path, json=body)
    assert answer.status_code == 201, answer.text
    item: dict[str, object] = answer.json()["item"]
    return item


def test_every_snapshot_of_a_guest_that_writes_is_one_moment(
    qemu_installation: Installation, tmp_path: Path
) -> None:
    with qemu_installation.http() as http:
        token = http.headers["authorization"].removeprefix("Bearer ")
        with Client(str(http.base_url), token) as client:
            post(http, "/v1/vms?wait=running", name="writer", rootfs="busybox", mem_mib=128)
            wait_for("an agent", lambda: http.get("/v1/vms/writer/guest").is_success)
            client.vms.exec("writer", ["sh", "-c", f"({WRITER}) </dev/null >/dev/null 2>&1 &"])
            before = 0
            for number in range(SNAPSHOTS):
                now = one_moment(client, http, f"moment-{number}", tmp_path)
                assert now > before, "the guest went on between two snapshots"
                before = now
            assert unbroken(read_chain(client, "writer")) > before
            assert http.delete("/v1/vms/writer?wait=deleted&force=true").is_success


def one_moment(client: Client, http: httpx.Client, name: str, scratch: Path) -> int:
    """Takes a snapshot, has a clone of it go on, and looks at both of its files: the clone's in
    memory and on disk. How long the chain was when the clone was asked for it."""
    post(http, "/v1/vms/writer/snapshots?wait=ready", name=name)
    clone = post(http, f"/v1/snapshots/{name}/instantiate?wait=running", name=name)
    wait_for("an agent", lambda: http.get(f"/v1/vms/{name}/guest").is_success)
    length = unbroken(read_chain(client, name))
    assert http.post(f"/v1/vms/{name}/stop?wait=stopped", json={"timeout_s": 0}).is_success
    socket = str(clone["socket"])
    disk = shutil.copy(Path(socket).parent / "rootfs.ext4", scratch / "disk")
    # What was in the guest's cache is lost with its power; its journal makes the rest whole.
    checked = subprocess.run(["e2fsck", "-p", disk], capture_output=True, text=True, check=False)
    assert checked.returncode in (0, 1), checked.stdout
    whole = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stdout
    command = ["debugfs", "-R", f"cat {CHAIN}", disk]
    on_disk = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # The clone went on until it was stopped, so its disk may know more than it said, or less.
    assert unbroken(on_disk.rpartition("\n")[0])
    assert http.delete(f"/v1/vms/{name}?wait=deleted").is_success
    assert http.delete(f"/v1/snapshots/{name}?wait=deleted").is_success
    return length
