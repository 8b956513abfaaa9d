"""Snapshots as the manager asks an agent for them."""

import os
import re
from pathlib import Path
from typing import Any

import httpx

from nexus.api.machines import Machine
from nexus.api.origins import Origin
from nexus.api.snapshots import HostSnapshot, SnapshotOrder
from nexus.ids import new_id
from tests.agent.harness import Agent, until


def order(machine: Machine, parent: HostSnapshot | None = None) -> SnapshotOrder:
    kind = "diff" if parent else "full"
    parent_id = parent.id if parent else None
    return SnapshotOrder(id=new_id(), vm_id=machine.id, kind=kind, parent_id=parent_id)


def put(agent: Agent, wish: SnapshotOrder) -> httpx.Response:
    return agent.http.put(
        f"/agent/v1/snapshots/{wish.id}",
        content=wish.model_dump_json(),
        headers={"content-type": "application/json"},
    )


def capture(agent: Agent, machine: Machine, parent: HostSnapshot | None = None) -> HostSnapshot:
    answer = put(agent, order(machine, parent))
    assert answer.status_code == 200, answer.text
    return HostSnapshot.model_validate_json(answer.content)


def remove(agent: Agent, snapshot: HostSnapshot) -> None:
    answer = agent.http.delete(f"/agent/v1/snapshots/{snapshot.id}")
    assert (answer.status_code, answer.json()) == (200, {"ok": True}), answer.text


def clone(agent: Agent, kernel: Path, snapshot: HostSnapshot, **change: Any) -> Machine:
    """A machine that begins with a snapshot, as a VM of its own."""
    source = snapshot.machine
    fields = {
        name: getattr(source, name)
        for name in ("vcpu", "mem_mib", "initrd", "rootfs", "drives", "kernel_args")
    }
    origin = Origin(snapshot=snapshot.id, boot=1)
    return agent.machine(kernel, **{**fields, "name": "clone", "origin": origin, **change})


def count(agent: Agent, vm_id: str) -> int:
    """The number that the tiny guest has counted to, by its own words."""
    before = len(counts(agent, vm_id))
    # Not ``type``: a guest that was loaded never greets.
    fifo = os.open(agent.run_dir / "vms" / vm_id / "console.in", os.O_RDWR | os.O_NONBLOCK)
    os.write(fifo, b"c")
    os.close(fifo)
    return until("a count", lambda: counts(agent, vm_id)[before:])[0]


def counts(agent: Agent, vm_id: str) -> list[int]:
    said = "\n".join(agent.console(vm_id))
    return [int(number) for number in re.findall(r"count=(\d+)", said)]
