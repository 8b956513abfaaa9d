"""Snapshots of real Linux under nexus-qemu: clones become VMs of their own and go on exactly."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nexus.agent.identity import machine_id
from nexus.api.machines import Machine, MachineStatus
from nexus.api.origins import Origin
from tests.agent.forking import ForkedAgent
from tests.agent.harness import Agent, until
from tests.agent.snapshots import capture, clone
from tests.parts import LinuxImages

pytestmark = [pytest.mark.qemu, pytest.mark.root]

WRITER = """#!/bin/sh
i=0
while true; do
  i=$((i + 1))
  echo $i >> /log
  [ $((i % 100)) -ne 0 ] || sync
done &
"""
"""Writes to the disk without a pause."""


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    agent = ForkedAgent(NEXUS_ENGINE="qemu")
    try:
        yield agent.start()
    finally:
        agent.close()


@pytest.fixture(scope="module")
def source(agent: Agent, linux_images: LinuxImages) -> Machine:
    """Linux that writes."""
    machine = agent.machine(
        linux_images.kernel,
        name="source",
        mem_mib=128,
        initrd=agent.blob(linux_images.initrd),
        rootfs=agent.blob(linux_images.rootfs),
        user_data=WRITER,
        track_dirty_pages=True,
    )
    agent.put(machine)
    until("it writes", lambda: len(lines(agent, machine)) > 200, 120)
    return machine


def lines(agent: Agent, machine: Machine) -> list[int]:
    answer = agent.http.get(f"/agent/v1/vms/{machine.id}/files", params={"path": "/log"})
    text = answer.text if answer.status_code == 200 else ""
    # The last line may be in the middle of being written.
    return [int(line) for line in text.split("\n")[:-1]]


def page(machine: Machine, path: str = "") -> str:
    address = machine.nics[0].ip.partition("/")[0]
    try:
        return httpx.get(f"http://{address}/{path}", timeout=2).text
    except httpx.TransportError:
        return ""


def applied(agent: Agent, vm_id: str) -> MachineStatus | None:
    status = agent.get(vm_id)
    assert status.identity is not None
    assert status.identity.state in ("pending", "applied"), status.identity
    return status if status.identity.state == "applied" else None


def file(agent: Agent, machine: Machine, path: str) -> str:
    return agent.http.get(f"/agent/v1/vms/{machine.id}/files", params={"path": path}).text


def test_clones_of_a_running_guest_have_names_and_addresses_of_their_own(
    agent: Agent, source: Machine, linux_images: LinuxImages
) -> None:
    counted = int(page(source, "count"))
    snapshot = capture(agent, source)
    clones = [
        clone(agent, linux_images.kernel, snapshot, name=name, user_data=WRITER)
        for name in ("first", "second")
    ]
    for machine in clones:
        assert agent.put(machine).state == "running"
    for machine in (*clones, source):
        assert machine.name in until("it answers", lambda m=machine: page(m), 60)
    for machine in clones:
        until("it is told", lambda m=machine: applied(agent, m.id))
        assert int(page(machine, "count")) >= counted
        assert file(agent, machine, "/etc/hostname").strip() == machine.name
        assert file(agent, machine, "/etc/machine-id").strip() == machine_id(machine.id)
    # What comes of a clone knows the clone's addresses.
    again = capture(agent, clones[0])
    assert again.machine.nics == clones[0].nics
    for machine in clones:
        agent.delete(machine.id)


def test_a_file_that_is_written_goes_on_exactly(
    agent: Agent, source: Machine, linux_images: LinuxImages, tmp_path: Path
) -> None:
    parent = capture(agent, source)
    for snapshot in (parent, capture(agent, source, parent)):
        kept = agent.run_dir / "snapshots" / snapshot.id / "rootfs.ext4"
        disk = tmp_path / "disk"
        shutil.copy(kept, disk)
        checked = subprocess.run(["e2fsck", "-fp", disk], capture_output=True, check=False)
        assert checked.returncode in (0, 1), checked.stdout
    machine = clone(agent, linux_images.kernel, snapshot, user_data=WRITER)
    agent.put(machine)
    until("it is told", lambda: applied(agent, machine.id))
    then = lines(agent, machine)
    until("it goes on", lambda: len(lines(agent, machine)) > len(then) + 100)
    now = lines(agent, machine)
    assert now == [*range(1, len(now) + 1)]
    agent.delete(machine.id)

    # Put back in place.
    origin = Origin(snapshot=snapshot.id, boot=2)
    restored = source.model_copy(update={"boot": 2, "generation": 2, "origin": origin})
    assert agent.put(restored).state == "running"
    until("it is told", lambda: applied(agent, source.id))
    then = lines(agent, source)
    until("it goes on", lambda: len(lines(agent, source)) > len(then) + 100)
    now = lines(agent, source)
    assert now == [*range(1, len(now) + 1)]
    assert source.name in until("it answers", lambda: page(source), 60)
