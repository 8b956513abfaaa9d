"""A root disk made anew before one boot, once, also when the agent is killed in the middle."""

import os
from pathlib import Path

import pytest

from nexus.agent.layout import Layout
from nexus.api.machines import Blob, Machine
from tests.agent.harness import Agent
from tests.agent.test_kills import put_and_be_cut_off

pytestmark = [pytest.mark.firecracker, pytest.mark.root]

OLD, NEW, OURS = b"of the old image", b"of the new image", b"of the guest"


def image(agent: Agent, words: bytes) -> Blob:
    file = agent.dir / "root.img"
    file.write_bytes(words)
    os.truncate(file, 1 << 20)
    return agent.blob(file)


def root_of(agent: Agent, machine: Machine) -> Path:
    return Layout(agent.run_dir).vm(machine.id, jailed=False).root / "rootfs.ext4"


def begins_with(file: Path) -> bytes:
    with file.open("rb") as disk:
        return disk.read(16).rstrip(b"\0")


def write(file: Path, words: bytes) -> None:
    with file.open("r+b") as disk:
        disk.write(words.ljust(16, b"\0"))


def again(machine: Machine, **change: object) -> Machine:
    boot = {"generation": machine.generation + 1, "boot": machine.boot + 1}
    return machine.model_copy(update=boot | change)


def test_it_is_made_anew_once(agent: Agent, tiny_kernel: Path) -> None:
    first = agent.machine(tiny_kernel, rootfs=image(agent, OLD), stop_timeout_s=0)
    agent.put(first)
    disk = root_of(agent, first)
    assert begins_with(disk) == OLD
    write(disk, OURS)
    second = again(first, rootfs=image(agent, NEW))
    agent.put(second)
    assert begins_with(disk) == OURS

    third = again(second, root_boot=3)
    agent.stop()
    agent.start(NEXUS_FAULT="after_disk")
    cut_off = put_and_be_cut_off(agent, third)
    assert agent.process is not None
    assert agent.process.wait(timeout=30) == -9
    cut_off.join()
    agent.start()
    status = agent.put(third)
    assert (status.state, status.boot, begins_with(disk)) == ("running", 3, NEW)
    write(disk, OURS)
    # Neither the same wish nor a later boot does it again.
    agent.put(third.model_copy(update={"generation": 4}))
    fourth = again(third, generation=5)
    assert agent.put(fourth).boot == 4
    assert begins_with(disk) == OURS
    # A boot that was missed is made up for.
    sixth = again(fourth, generation=6, boot=6, root_boot=5)
    assert agent.put(sixth).boot == 6
    assert begins_with(disk) == NEW
    agent.delete(first.id)
