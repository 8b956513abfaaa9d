"""Snapshots of the tiny guest in real Firecracker: captured, loaded, restored, refused."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from nexus.agent import loading
from nexus.agent.layout import tap_name
from nexus.api.devices import NicLimits
from nexus.api.machines import Blob, Machine, MachineStatus
from nexus.api.origins import Origin
from nexus.api.snapshots import HostSnapshot
from nexus.ids import new_id
from nexus.vmm import binaries
from tests.agent.forking import ForkedAgent
from tests.agent.harness import Agent, agent_of, until
from tests.agent.snapshots import capture, clone, count, order, put, remove

pytestmark = [pytest.mark.firecracker, pytest.mark.root]


@pytest.fixture(scope="module")
def agent(firecracker_binary: Path) -> Iterator[Agent]:
    with agent_of(ForkedAgent, firecracker_binary) as agent:
        yield agent


@pytest.fixture(scope="module")
def rootfs(agent: Agent) -> Blob:
    image = agent.dir / "root.img"
    image.write_bytes(b"of the image")
    os.truncate(image, 4 << 20)
    return agent.blob(image)


@pytest.fixture
def source(agent: Agent, tiny_kernel: Path, rootfs: Blob) -> Iterator[Machine]:
    """A machine that runs, and has counted."""
    machine = agent.machine(tiny_kernel, rootfs=rootfs, track_dirty_pages=True)
    agent.put(machine)
    agent.type(machine.id, b"x")
    until("it has counted", lambda: count(agent, machine.id) > 0)
    yield machine
    agent.delete(machine.id)


def disk(agent: Agent, machine: Machine) -> Path:
    return agent.run_dir / "vms" / machine.id / "root" / "rootfs.ext4"


def write(file: Path, text: bytes) -> None:
    with file.open("r+b") as opened:
        opened.write(text)


def begins_with(file: Path, text: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(text)) == text


@contextlib.contextmanager
def captures_on_disk(agent: Agent) -> Iterator[None]:
    """The agent goes on without lending memory to captures."""
    agent.kill()
    agent.start(NEXUS_CAPTURE_IN_MEMORY="0")
    try:
        yield
    finally:
        agent.kill()
        agent.start()


def files_in_memory(pid: int) -> list[str]:
    """Those that a process has open."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return [name for name in found if "memfd:nexus-capture" in name]


def vmm(agent: Agent, machine: Machine, path: str = "") -> Any:
    return agent.http.get(f"/agent/v1/vms/{machine.id}/proxy/{path}").json()


def changed(machine: Machine, **change: Any) -> Machine:
    return machine.model_copy(update={"generation": machine.generation + 1, **change})


def shelf(agent: Agent) -> list[str]:
    return sorted(path.name for path in (agent.run_dir / "snapshots").iterdir())


def test_clones_go_on_where_the_guest_was(agent: Agent, tiny_kernel: Path, source: Machine) -> None:
    before = agent.traces()
    write(disk(agent, source), b"of the guest")
    counted = count(agent, source.id)
    snapshot = capture(agent, source)
    assert vmm(agent, source)["state"] == "Running"
    assert snapshot.pause_ms > 0
    sizes = {file.name: file.size_bytes for file in snapshot.files}
    assert sizes.keys() == {"mem", "state", "rootfs.ext4"}
    assert sizes["mem"] == 32 << 20
    # Memory that was never used takes no space.
    assert snapshot.disk_bytes < snapshot.size_bytes // 4
    assert agent.http.get("/agent/v1/snapshots").json()["items"] == [
        snapshot.model_dump(mode="json")
    ]
    write(disk(agent, source), b"of  a  later")

    clones = [clone(agent, tiny_kernel, snapshot) for _ in range(2)]
    clones[1] = changed(
        clones[1],
        nics=[clones[1].nics[0].model_copy(update={"limits": NicLimits(tx_mbit_s=10)})],
    )
    statuses = [agent.put(machine) for machine in clones]
    assert [(s.state, s.boot, s.error, s.devices_applied) for s in statuses] == [
        ("running", 1, None, True)
    ] * 2
    assert all(s.identity and s.identity.state == "pending" for s in statuses)
    for machine in clones:
        # Whoever booted anew would begin at nothing.
        assert count(agent, machine.id) >= counted
        assert "nexus-tiny ready" not in "".join(agent.console(machine.id)).replace("\n", "")
        assert begins_with(disk(agent, machine), b"of the guest")
    taps = [vmm(agent, machine, "vm/config")["network-interfaces"][0] for machine in clones]
    assert [tap["host_dev_name"] for tap in taps] == [s.nics[0].tap for s in statuses]
    assert taps[0]["tx_rate_limiter"] is None
    assert taps[1]["tx_rate_limiter"]["bandwidth"]
    assert memory_of(statuses[0]) == memory_of(statuses[1])

    # A clone is like any other: it is captured, and outlives what it came from.
    remove(agent, snapshot)
    remove(agent, snapshot)
    wish = order(clones[0])
    again = HostSnapshot.model_validate_json(put(agent, wish).content)
    assert [nic.mac for nic in again.machine.nics] == [nic.mac for nic in source.nics]
    agent.delete(clones[0].id)
    # Whoever did not hear of it asks again, and its VM may be gone by then.
    assert HostSnapshot.model_validate_json(put(agent, wish).content) == again
    remove(agent, again)
    for machine in clones:
        agent.delete(machine.id)
    assert agent.traces() == before


def memory_of(status: MachineStatus) -> set[str]:
    """Device and inode of the file that a VMM has as its guest's memory."""
    maps = Path(f"/proc/{status.pid}/maps").read_text()
    found = {tuple(line.split()[3:5]) for line in maps.splitlines() if "snap.mem" in line}
    assert len(found) == 1
    return {"/".join(pair) for pair in found}


def test_a_guest_that_was_paused_stays_so_and_a_warm_clone_waits(
    agent: Agent, tiny_kernel: Path, source: Machine
) -> None:
    agent.put(paused := changed(source, power="paused"))
    snapshot = capture(agent, source)
    assert snapshot.pause_ms == 0
    assert vmm(agent, source)["state"] == "Paused"
    assert agent.get(source.id).state == "paused"
    agent.put(changed(paused, power="running"))

    warm = clone(agent, tiny_kernel, snapshot, power="paused")
    status = agent.put(warm)
    assert (status.state, status.boot) == ("paused", 1)
    status = agent.put(changed(warm, power="running"))
    assert (status.state, status.pid) == ("running", agent.vmms(warm.id)[0])
    assert status.identity is not None
    assert status.identity.state == "pending"
    told = until("it has no agent", lambda: identity_of(agent, warm.id, "absent"))
    assert told.at is not None
    agent.delete(warm.id)
    remove(agent, snapshot)


def identity_of(agent: Agent, vm_id: str, state: str) -> Any:
    identity = agent.get(vm_id).identity
    return identity if identity and identity.state == state else None


def test_a_diff_leans_on_the_last_snapshot_and_is_merged(
    agent: Agent, tiny_kernel: Path, source: Machine
) -> None:
    wrong = order(source).model_copy(update={"kind": "diff", "parent_id": new_id()})
    refused(put(agent, wrong), 409, "full snapshot first")
    first = capture(agent, source)
    second = capture(agent, source, first)
    refused(put(agent, order(source, first)), 409, second.id)
    counted = count(agent, source.id)
    third = capture(agent, source, second)
    assert (second.needs_parent, third.needs_parent) == (True, True)
    assert memory_bytes(third) < memory_bytes(first)

    # What others lean on goes only when they stand by themselves.
    remove(agent, second)
    third = get(agent, third)
    assert not third.needs_parent
    remove(agent, first)
    machine = clone(agent, tiny_kernel, third, track_dirty_pages=True)
    assert agent.put(machine).state == "running"
    at_fourth = count(agent, machine.id)
    assert at_fourth >= counted
    fourth = capture(agent, machine, third)
    assert fourth.needs_parent
    # A full one is what changed, laid over the last one: the guest hardly stands still for it.
    counted = count(agent, machine.id)
    fifth = capture(agent, machine)
    assert (fifth.kind, fifth.parent_id, fifth.needs_parent) == ("full", None, False)
    assert not get(agent, fourth).needs_parent
    whole = clone(agent, tiny_kernel, fifth)
    assert agent.put(whole).state == "running"
    assert count(agent, whole.id) >= counted
    last = clone(agent, tiny_kernel, fourth)
    assert agent.put(last).state == "running"
    assert count(agent, last.id) >= at_fourth
    assert get(agent, fourth).needs_parent is False
    for done in (machine, last, whole):
        agent.delete(done.id)
    for snapshot in (third, fourth, fifth):
        remove(agent, snapshot)
    assert shelf(agent) == []


def memory_bytes(snapshot: HostSnapshot) -> int:
    return next(file.disk_bytes for file in snapshot.files if file.name == "mem")


def get(agent: Agent, snapshot: HostSnapshot) -> HostSnapshot:
    answer = agent.http.get(f"/agent/v1/snapshots/{snapshot.id}")
    return HostSnapshot.model_validate_json(answer.content)


def test_a_vm_is_put_back_to_what_it_was(agent: Agent, tiny_kernel: Path, source: Machine) -> None:
    write(disk(agent, source), b"of the guest")
    snapshot = capture(agent, source)
    counted = count(agent, source.id)
    pid = agent.get(source.id).pid
    write(disk(agent, source), b"of  a  later")
    restored = changed(source, boot=2, origin=Origin(snapshot=snapshot.id, boot=2))
    restored = restored.model_copy(update={"restart_policy": "always"})
    status = agent.put(restored)
    assert (status.state, status.boot, status.error) == ("running", 2, None)
    of_restored = capture(agent, restored)
    copy = clone(agent, tiny_kernel, of_restored)
    assert agent.put(copy).state == "running"
    assert count(agent, copy.id) >= 0
    agent.delete(copy.id)
    remove(agent, of_restored)
    assert status.pid != pid
    assert begins_with(disk(agent, source), b"of the guest")
    assert count(agent, source.id) <= counted + 20
    banners = "".join(agent.console(source.id)).count("tiny ready")
    # By its restart policy it boots, from the disk that it has by now.
    write(disk(agent, source), b"of the third")
    agent.type(source.id, b"q")
    until("it booted", lambda: "".join(agent.console(source.id)).count("tiny ready") > banners)
    assert agent.get(source.id).identity is None
    assert begins_with(disk(agent, source), b"of the third")
    remove(agent, snapshot)


def refused(answer: httpx.Response, status: int, words: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert words in answer.text
    body: dict[str, Any] = answer.json()
    assert body["suggestion"]
    return body


def test_a_snapshot_names_the_vmm_that_runs_and_not_the_one_that_is_installed(
    agent: Agent, source: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = capture(agent, source)
    with monkeypatch.context() as upgraded:
        upgraded.setattr(binaries, "version_of", lambda _: "99.0.0")
        agent.stop()
        agent.start()
    assert capture(agent, source).vmm_version == before.vmm_version
    agent.put(changed(source, boot=2, stop_timeout_s=0))
    assert capture(agent, source).vmm_version == "99.0.0"
    agent.stop()
    agent.start()
    for item in shelf(agent):
        assert agent.http.delete(f"/agent/v1/snapshots/{item}").status_code == 200


def test_what_cannot_be_captured_is_refused(agent: Agent, tiny_kernel: Path) -> None:
    machine = agent.machine(tiny_kernel)
    refused(put(agent, order(machine)), 404, machine.id)
    agent.put(machine.model_copy(update={"power": "stopped", "boot": 0}))
    refused(put(agent, order(machine)), 409, "does not run")
    agent.put(changed(machine))
    diff = order(machine).model_copy(update={"kind": "diff", "parent_id": new_id()})
    refused(put(agent, diff), 409, "not on this host")
    full = capture(agent, machine)
    refused(put(agent, order(machine, full)), 409, "track_dirty_pages")
    remove(agent, full)
    wish = order(machine)
    other = agent.http.put(f"/agent/v1/snapshots/{new_id()}", json=wish.model_dump())
    assert other.status_code == 400
    with captures_on_disk(agent):
        blocked = agent.run_dir / "vms" / machine.id / "root" / ".mem.new"
        blocked.mkdir()
        body = refused(put(agent, wish), 409, "gives no snapshot")
        assert "Is a directory" in body["fault_message"]
        assert vmm(agent, machine)["state"] == "Running"
        assert (shelf(agent), blocked.exists()) == ([], False)
    agent.delete(machine.id)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_vm_that_ends_while_it_is_captured(
    agent: Agent, tiny_kernel: Path, deleted: bool, on_disk: bool
) -> None:
    with captures_on_disk(agent) if on_disk else contextlib.nullcontext():
        ends_while_it_is_captured(agent, tiny_kernel, deleted)


def ends_while_it_is_captured(agent: Agent, tiny_kernel: Path, deleted: bool) -> None:
    # All of its memory takes a while.
    source = agent.machine(tiny_kernel, mem_mib=256)
    agent.put(source)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(put(agent, order(source))))
    written = agent.run_dir / "vms" / source.id / "root" / ".mem.new"
    pid = agent.get(source.id).pid
    assert pid is not None
    asking.start()
    until("it writes its memory", lambda: written.exists() or files_in_memory(pid))
    if deleted:
        agent.delete(source.id)
    else:
        os.kill(pid, signal.SIGKILL)
    asking.join()
    refused(answers[0], 409, source.name)
    if not deleted:
        status = until("it is settled", lambda: ended(agent, source.id))
        assert status.exit_cause == "crashed"
    assert (shelf(agent), written.exists()) == ([], False)
    agent.delete(source.id)


def ended(agent: Agent, vm_id: str) -> MachineStatus | None:
    status = agent.get(vm_id)
    return status if status.exit_cause else None


def test_what_does_not_fit_here_is_refused_before_anything_is_touched(
    agent: Agent, tiny_kernel: Path, source: Machine
) -> None:
    snapshot = capture(agent, source)
    before = agent.traces()
    misfit = clone(agent, tiny_kernel, snapshot, vcpu=2)
    assert failed(agent.put(misfit), "configure") == (
        "the snapshot's machine and this one differ in vCPUs: 1 and 2"
    )
    agent.delete(misfit.id)
    lost = clone(agent, tiny_kernel, snapshot.model_copy(update={"id": new_id()}))
    assert "no snapshot" in failed(agent.put(lost), "disk")
    agent.delete(lost.id)
    # What the host lacks does not use up the boot, and is not tried again by itself.
    disk_of_it = agent.run_dir / "snapshots" / snapshot.id / "rootfs.ext4"
    disk_of_it.rename(agent.dir / "away")
    halved = clone(agent, tiny_kernel, snapshot)
    assert "no snapshot" in failed(agent.put(halved), "disk")
    assert (agent.vmms(halved.id), agent.get(halved.id).boot) == ([], 0)
    (agent.dir / "away").rename(disk_of_it)
    assert failed(agent.get(halved.id), "disk")
    assert agent.put(halved).state == "running"
    agent.delete(halved.id)
    assert agent.traces() == before

    # Of another CPU, by its own words.
    agent.stop()
    meta = agent.run_dir / "snapshots" / snapshot.id / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "cpu": "Z80"}))
    agent.start()
    pid = agent.get(source.id).pid
    wish = changed(source, boot=2, origin=Origin(snapshot=snapshot.id, boot=2))
    answer = agent.http.put(f"/agent/v1/vms/{source.id}", json=wish.model_dump(mode="json"))
    refused(answer, 409, "Z80")
    assert (agent.get(source.id).pid, agent.get(source.id).state) == (pid, "running")

    # Of this CPU, and damaged.
    meta.write_text(snapshot.model_dump_json())
    state = meta.with_name("state")
    state.chmod(0o600)
    state.write_bytes(b"\0" * 100)
    agent.stop()
    agent.start()
    damaged = clone(agent, tiny_kernel, snapshot)
    status = agent.put(damaged)
    assert "does not load" in failed(status, "configure")
    assert status.error is not None
    assert re.search("(?i)snapshot", status.error.fault_message or "")
    assert agent.vmms(damaged.id) == []
    agent.delete(damaged.id)
    remove(agent, snapshot)


@contextlib.contextmanager
def lacking_its_disk(agent: Agent, snapshot: HostSnapshot) -> Iterator[None]:
    """A snapshot of which no VM can be made."""
    file = agent.run_dir / "snapshots" / snapshot.id / "rootfs.ext4"
    file.rename(agent.dir / "away")
    try:
        yield
    finally:
        (agent.dir / "away").rename(file)


def stopped(machine: Machine) -> Machine:
    return changed(machine, power="stopped", stop_timeout_s=0)


def next_boot(machine: Machine, number: int) -> Machine:
    return changed(machine, power="running", boot=number)


def put_back(machine: Machine, snapshot: HostSnapshot, number: int) -> Machine:
    return next_boot(machine, number).model_copy(
        update={"origin": Origin(snapshot=snapshot.id, boot=number)}
    )


def captured_and_off(agent: Agent, source: Machine) -> tuple[HostSnapshot, Machine]:
    """A snapshot, and its VM that was stopped with another disk since."""
    write(disk(agent, source), b"of the guest")
    snapshot = capture(agent, source)
    agent.put(wish := stopped(source))
    write(disk(agent, source), b"of  a  later")
    return snapshot, wish


def test_what_failed_before_it_touched_a_disk_leaves_the_vm_its_own(
    agent: Agent, tiny_kernel: Path, source: Machine
) -> None:
    snapshot, wish = captured_and_off(agent, source)
    with lacking_its_disk(agent, snapshot):
        assert "no snapshot" in failed(agent.put(wish := put_back(wish, snapshot, 2)), "disk")
        # One that never had disks has none still, and does not boot from its image's.
        copy = clone(agent, tiny_kernel, snapshot)
        assert "no snapshot" in failed(agent.put(copy), "disk")
    assert agent.put(next_boot(copy, 2)).state == "running"
    assert begins_with(disk(agent, copy), b"of the guest")
    agent.delete(copy.id)
    remove(agent, snapshot)
    assert agent.put(next_boot(wish, 3)).state == "running"
    assert begins_with(disk(agent, source), b"of  a  later")


def test_what_failed_once_the_disks_were_placed_needs_its_snapshot_no_more(
    agent: Agent, source: Machine
) -> None:
    snapshot, wish = captured_and_off(agent, source)
    tap = tap_name(source.id, 0)
    subprocess.run(["ip", "link", "add", tap, "type", "bridge"], check=True)
    try:
        failed(agent.put(wish := put_back(wish, snapshot, 2)), "network")
    finally:
        subprocess.run(["ip", "link", "del", tap], check=True)
    remove(agent, snapshot)
    assert agent.put(next_boot(wish, 3)).state == "running"
    assert begins_with(disk(agent, source), b"of the guest")


def test_an_agent_that_did_not_begin_a_load_takes_disks_for_half_placed(
    agent: Agent, source: Machine
) -> None:
    snapshot, wish = captured_and_off(agent, source)
    agent.stop()
    agent.start(NEXUS_FAULT="load_placing")
    wish = put_back(wish, snapshot, 2)
    with contextlib.suppress(httpx.TransportError):
        agent.put(wish)
    assert agent.process is not None
    agent.process.wait(timeout=60)
    with lacking_its_disk(agent, snapshot):
        agent.start()
        for number in (2, 3):
            wish = next_boot(wish, number)
            assert "no snapshot" in failed(agent.put(wish), "disk")
        # What fails later and touches nothing does not make them whole either.
        wish = put_back(wish, snapshot, 4)
        assert "no snapshot" in failed(agent.put(wish), "disk")
    assert agent.put(next_boot(wish, 5)).state == "running"
    assert begins_with(disk(agent, source), b"of the guest")
    remove(agent, snapshot)


@contextlib.contextmanager
def held(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """An agent that looks at the next snapshot only once the end of a pipe is closed, which is
    returned as soon as it wants to look."""
    gate = agent.dir / "gate"
    os.mkfifo(gate)
    loadable = loading.loadable
    looked: list[bool] = []

    async def wait(*arguments: Any) -> HostSnapshot:
        if not looked:
            looked.append(True)
            await anyio.to_thread.run_sync(gate.read_bytes)
        return await loadable(*arguments)

    def reached() -> int | None:
        try:
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            return None

    with monkeypatch.context() as patched:
        patched.setattr(loading, "loadable", wait)
        agent.stop()
        agent.start()
    try:
        yield lambda: until("it wants to look", reached)
    finally:
        gate.unlink()


@pytest.mark.parametrize("then", ["stopped", "deleted"])
def test_a_wish_that_took_long_to_judge_gives_way_to_what_came_meanwhile(
    agent: Agent, source: Machine, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    snapshot = capture(agent, source)
    wish = changed(source, generation=5, boot=2, origin=Origin(snapshot=snapshot.id, boot=2))
    answers: list[httpx.Response] = []

    def ask() -> None:
        body = wish.model_dump(mode="json")
        answers.append(agent.http.put(f"/agent/v1/vms/{source.id}", json=body))

    asking = threading.Thread(target=ask)
    with held(agent, monkeypatch) as reached:
        asking.start()
        gate = reached()
        newer = changed(source, generation=6, power="stopped", stop_timeout_s=0)
        if then == "deleted":
            agent.delete(source.id)
        else:
            assert agent.put(newer).state == "stopped"
        os.close(gate)
        asking.join()
    words = "older than 6" if then == "stopped" else "deleted"
    refused(answers[0], 409, words)
    kept = agent.run_dir / "vms" / source.id / "desired.json"
    if then == "deleted":
        assert not kept.parent.exists()
    else:
        assert Machine.model_validate_json(kept.read_bytes()) == newer
    remove(agent, snapshot)


def failed(status: MachineStatus, stage: str) -> str:
    assert (status.state, status.error and status.error.stage) == ("error", stage)
    assert status.error is not None
    assert status.error.suggestion
    return status.error.message
