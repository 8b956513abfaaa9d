"""What fits where, what leans on what, and who a guest is told to be: pure rules."""

from datetime import UTC, datetime
from typing import Any

import pytest

from nexus.agent import capture, loading
from nexus.agent.identity import KnownAs, identity_of, machine_id
from nexus.agent.plan import Seen, Step, plan, wants_load
from nexus.agent.record import Record
from nexus.api.devices import Balloon
from nexus.api.errors import Conflict, InvalidState
from nexus.api.machines import Blob, Machine, MachineDrive, MachineNic
from nexus.api.origins import Origin
from nexus.api.snapshots import HostSnapshot, SnapshotOrder
from nexus.ids import new_id
from tests.agent.harness import a_wish

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BLOB = Blob(sha256="0" * 64, size_bytes=1)
HOST = loading.Host("firecracker", "1.12.1", "a CPU")


def nic(number: int) -> MachineNic:
    return MachineNic(
        iface="eth0",
        mac=f"06:00:0a:40:00:{number:02x}",
        ip=f"10.64.0.{number}/20",
        gateway="10.64.0.1",
        dns=["10.64.0.1", "9.9.9.9"],
    )


def machine(**change: Any) -> Machine:
    fields = {"mem_mib": 32, "kernel": BLOB, "rootfs": BLOB, "nics": [nic(2)]}
    return a_wish(**{**fields, **change})


def snapshot(of: Machine, **change: Any) -> HostSnapshot:
    fields: dict[str, Any] = {
        "id": new_id(),
        "vm_id": of.id,
        "kind": "full",
        "parent_id": None,
        "engine": "firecracker",
        "vmm_version": "1.12.1",
        "cpu_template": None,
        "cpu": "a CPU",
        "vcpu": of.vcpu,
        "mem_mib": of.mem_mib,
        "files": [],
        "size_bytes": 0,
        "disk_bytes": 0,
        "pause_ms": 1.0,
        "taken_at": NOW,
        "machine": of,
    }
    return HostSnapshot(**{**fields, **change})


def test_a_snapshot_fits_its_like() -> None:
    source = machine()
    assert loading.mismatch(snapshot(source), machine(nics=[nic(3)]), HOST) is None
    # The version of Firecracker's format decides, and TCG is the same on any CPU.
    assert loading.mismatch(snapshot(source, vmm_version="1.13.0"), source, HOST) is None
    qemu = snapshot(source, engine="qemu", vmm_version="7.2.9", cpu="another CPU")
    assert loading.mismatch(qemu, source, loading.Host("qemu", "7.2.9", "a CPU")) is None


@pytest.mark.parametrize(
    ("word", "taken", "wanted"),
    [
        ("engine qemu", {"engine": "qemu"}, {}),
        ("another CPU", {"cpu": "another CPU"}, {}),
        ("vCPUs", {}, {"vcpu": 2}),
        ("memory", {}, {"mem_mib": 64}),
        ("NICs", {}, {"nics": []}),
        ("root disk", {}, {"rootfs": None}),
        ("balloon", {}, {"balloon": Balloon()}),
        (
            "drives",
            {},
            {"drives": [MachineDrive(name="d", size_mib=1, blob=None, read_only=False)]},
        ),
    ],
)
def test_what_does_not_fit_is_said(
    word: str, taken: dict[str, Any], wanted: dict[str, Any]
) -> None:
    refusal = loading.mismatch(snapshot(machine(), **taken), machine(**wanted), HOST)
    assert isinstance(refusal, Conflict)
    assert word in refusal.message
    assert refusal.suggestion


def test_qemu_loads_only_what_the_same_qemu_wrote() -> None:
    taken = snapshot(machine(), engine="qemu", vmm_version="7.2.9")
    refusal = loading.mismatch(taken, machine(), loading.Host("qemu", "8.2.0", "a CPU"))
    assert refusal is not None
    assert "7.2.9" in refusal.message


def test_one_boot_is_loaded_and_ends_what_runs_at_once() -> None:
    origin = Origin(snapshot=new_id(), boot=2)
    wish = machine(boot=2, origin=origin, stop_timeout_s=60)
    assert wants_load(wish, 1)
    assert not wants_load(wish, 2)
    assert not wants_load(wish.model_copy(update={"boot": 3}), 2)
    assert not wants_load(wish.model_copy(update={"power": "stopped"}), 1)
    running = Seen("running", 1, alive=True)
    assert plan(wish, running, NOW) is Step.KILL
    assert plan(machine(boot=2, stop_timeout_s=60), running, NOW) is Step.ASK_STOP


def diff(of: Machine, parent: str) -> SnapshotOrder:
    return SnapshotOrder(id=new_id(), vm_id=of.id, kind="diff", parent_id=parent)


def test_a_diff_leans_on_the_last_one_of_a_boot_that_is_tracked() -> None:
    one, last = machine(), new_id()
    record = Record(engine="firecracker", phase="running", tracks=True, last_snapshot=last)
    capture.check(diff(one, last), one, record, runs=True)
    for order, change in (
        (diff(one, new_id()), {}),
        (diff(one, last), {"tracks": False}),
        (diff(one, last), {"last_snapshot": None}),
    ):
        with pytest.raises(Conflict) as refused:
            capture.check(order, one, record.model_copy(update=change), runs=True)
        assert refused.value.suggestion
    for runs, phase in ((False, "running"), (True, "starting")):
        with pytest.raises(InvalidState):
            capture.check(
                SnapshotOrder(id=new_id(), vm_id=one.id),
                one,
                record.model_copy(update={"phase": phase}),
                runs=runs,
            )


def test_what_changed_suffices_where_the_rest_is_known() -> None:
    full = SnapshotOrder(id=new_id(), vm_id=new_id())
    last = new_id()
    tracked = Record(engine="firecracker", phase="running", tracks=True)

    def suffices(base: str | None, **change: Any) -> bool:
        return capture.changes_suffice(full, tracked.model_copy(update=change), base)

    # Since it booted, nothing was taken.
    assert suffices(None)
    assert not suffices(None, captured=True)
    assert not suffices(None, loaded_from=last)
    assert not suffices(None, tracks=False)
    # Since the last one.
    assert suffices(last, captured=True, last_snapshot=last)
    assert suffices(last, loaded_from=last, last_snapshot=last)
    assert not suffices(last, captured=True, last_snapshot=None)
    assert not suffices(last, captured=True, last_snapshot=new_id())


def test_what_changed_is_laid_over_a_snapshot_of_the_same_boot_alone() -> None:
    full, last = SnapshotOrder(id=new_id(), vm_id=new_id()), new_id()
    anew = Record(engine="firecracker", phase="running", tracks=True)
    since_last = anew.model_copy(update={"captured": True, "last_snapshot": last})
    assert capture.lies_over_base(full, since_last, last)
    # It booted while its turn was awaited: all that changed since is all there is.
    assert capture.changes_suffice(full, anew, last)
    assert not capture.lies_over_base(full, anew, last)
    for base in (None, new_id()):
        assert not capture.lies_over_base(full, since_last, base)
    assert not capture.lies_over_base(diff(machine(), last), since_last, last)


def test_a_guest_is_told_who_it_is_by_what_it_knows() -> None:
    source = machine(name="source")
    known = KnownAs.of(snapshot(source))
    clone = machine(name="clone", nics=[nic(7)])
    told = identity_of(clone, known)
    assert (told.hostname, told.machine_id) == ("clone", machine_id(clone.id))
    assert [(n.old_mac, n.mac, n.address) for n in told.nics] == [
        (nic(2).mac, nic(7).mac, nic(7).ip)
    ]
    assert told.dns == ("10.64.0.1", "9.9.9.9")
    # Put back, it is who it was.
    assert identity_of(source, known).machine_id is None
    # A clone that was not told passes on what its guest knows.
    assert known.machine(clone).nics[0].mac == nic(2).mac
    assert known.machine(clone).nics[0].ip == nic(7).ip
    untold = snapshot(known.machine(clone), vm_id=clone.id)
    assert identity_of(clone, KnownAs.of(untold)).machine_id == machine_id(clone.id)
    assert identity_of(source, KnownAs.of(untold)).machine_id is None
