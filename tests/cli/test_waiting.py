"""Waiting for a VM whose host fetches its images first."""

import os
import pty
import subprocess
import threading
from collections.abc import Iterator

import pytest

from nexus.api.common import Progress
from nexus.api.vms import Vm, VmCreate
from nexus.cli.waiting import create_and_watch
from nexus.client import Client, WaitTimedOut
from tests.cli.calling import command, done, environment
from tests.client.wire import TOKEN, Wire, make_vm
from tests.parts import REPO

FAR = Progress(what="fetching the image of rootfs", fraction=0.4)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def wait_until_asked(wire: Wire, vm: Vm, times: int) -> None:
    deadline = threading.Event()
    for _ in range(3000):
        if len(wire.asked_for("GET", f"/v1/vms/{vm.id}")) >= times:
            return
        deadline.wait(0.01)
    raise AssertionError("nobody looks at the VM")


def become(wire: Wire, vm: Vm, **changes: object) -> None:
    wire.vms[wire.vms.index(wire.vm(vm.id))] = wire.vm(vm.id).model_copy(update=changes)


def test_progress_is_shown_while_it_is_awaited(wire: Wire, terminal: tuple[int, int]) -> None:
    wire.new_state = "requested"
    arguments = command("run", "busybox", "--name", "slow")
    running = subprocess.Popen(
        arguments,
        env=environment(wire) | {"TERM": "xterm", "PYTHONPATH": str(REPO)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal[1],
        text=True,
    )
    for _ in range(3000):
        if any(vm.name == "slow" for vm in wire.vms):
            break
        threading.Event().wait(0.01)
    vm = wire.vm("slow")
    become(wire, vm, progress=FAR)
    wait_until_asked(wire, vm, len(wire.asked_for("GET", f"/v1/vms/{vm.id}")) + 3)
    become(wire, vm, progress=None, state="running")
    out, _ = running.communicate(timeout=60)
    assert (running.returncode, out.splitlines()[1].split()[:2]) == (0, ["slow", "running"])
    shown = os.read(terminal[0], 65536).decode()
    assert ("fetching the image of rootfs" in shown, "40%" in shown) == (True, True)


def test_a_wait_ends(wire: Wire) -> None:
    wire.new_state = "requested"
    with Client(wire.url, TOKEN) as client, pytest.raises(WaitTimedOut):
        create_and_watch(client, VmCreate(name="never"), "running", 0.05)


def test_show_tells_of_it(wire: Wire) -> None:
    wire.vms.append(make_vm("slow", progress=FAR, state="requested"))
    assert "fetching the image of rootfs: 40 %" in done(wire, "show", "slow")
