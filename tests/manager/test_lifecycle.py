"""The rules of a VM's life as properties: they hold for every state, action and observation."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.api.endings import ExitCause
from nexus.api.errors import AddressPoolExhausted, InvalidState, NoCapacity
from nexus.api.machines import MachineState, MachineStatus
from nexus.api.vms import VmState
from nexus.ids import new_id
from nexus.manager import ipam, lifecycle, scheduler
from nexus.manager.db.tables import WantedPower
from nexus.manager.lifecycle import ACTIONS, Action, Situation, decide, seen_state, settles
from nexus.manager.pipelines.vms import BACKOFF_MOST_S, backoff_s

POWERS = get_args(WantedPower)
situations = st.builds(
    Situation,
    name=st.just("vm"),
    state=st.sampled_from(get_args(VmState)),
    power=st.sampled_from(POWERS),
    boot=st.integers(0, 3),
    settled=st.booleans(),
)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
statuses = st.builds(
    MachineStatus,
    id=st.builds(new_id),
    generation=st.integers(1, 5),
    state=st.sampled_from(get_args(MachineState)),
    boot=st.integers(0, 3),
    engine=st.just("qemu"),
    pid=st.none(),
    socket=st.just("/s"),
    nics=st.just([]),
    configured_at=st.none(),
    started_at=st.none(),
    exited_at=st.none(),
    exit_cause=st.sampled_from([None, *get_args(ExitCause)]),
    restart_at=st.sampled_from([None, NOW]),
    error=st.none(),
    observed_at=st.just(NOW),
)


@given(situations, st.sampled_from(ACTIONS))
def test_an_action_is_decided_or_refused_with_a_cure(vm: Situation, action: Action) -> None:
    try:
        wanted = decide(action, vm)
    except InvalidState as error:
        refusal: InvalidState | None = error
        wanted = None
    else:
        refusal = None
    if refusal is not None:
        assert refusal.suggestion
        assert action != "delete"
        return
    if wanted is None:
        return
    goal = {
        "start": "running",
        "stop": "stopped",
        "pause": "paused",
        "resume": "running",
        "reboot": "running",
        "delete": "deleted",
    }
    assert wanted.power == goal[action]
    assert wanted.boot == vm.boot + (1 if action in ("start", "reboot") else 0)
    assert vm.power != "deleted", "nothing comes back from deletion"


@given(situations)
def test_asking_twice_is_asking_once(vm: Situation) -> None:
    for action in ("start", "pause", "resume", "reboot", "delete"):
        try:
            wanted = decide(action, vm)
        except InvalidState:
            continue
        if wanted is None:
            continue
        after = Situation(vm.name, wanted.state, wanted.power, wanted.boot, False)
        assert decide(action, after) is None


@given(situations)
def test_a_vm_can_always_be_deleted(vm: Situation) -> None:
    wanted = decide("delete", vm)
    assert (wanted is None) == (vm.power == "deleted")


@pytest.mark.parametrize(
    ("action", "state", "power", "boot", "becomes"),
    [
        ("start", "configured", "stopped", 0, ("running", 1, "configured")),
        ("start", "stopped", "stopped", 2, ("running", 3, "requested")),
        ("start", "error", "running", 1, ("running", 2, "requested")),
        ("stop", "running", "running", 1, ("stopped", 1, "stopping")),
        ("stop", "paused", "paused", 1, ("stopped", 1, "stopping")),
        ("stop", "stopping", "stopped", 1, ("stopped", 1, "stopping")),
        ("pause", "running", "running", 1, ("paused", 1, "running")),
        ("resume", "paused", "paused", 1, ("running", 1, "paused")),
        ("delete", "unknown", "running", 1, ("deleted", 1, "deleting")),
        ("reboot", "running", "running", 1, ("running", 2, "stopping")),
        ("reboot", "paused", "paused", 1, ("running", 2, "stopping")),
        ("reboot", "error", "running", 1, ("running", 2, "requested")),
        ("reboot", "requested", "running", 1, None),
        ("start", "stopping", "running", 2, None),
        ("start", "stopped", "running", 1, ("running", 2, "requested")),
        ("start", "running", "running", 1, None),
        ("stop", "stopped", "stopped", 1, None),
    ],
)
def test_the_table(
    action: Action,
    state: VmState,
    power: WantedPower,
    boot: int,
    becomes: tuple[str, int, str] | None,
) -> None:
    wanted = decide(action, Situation("vm", state, power, boot, True))
    assert (None if wanted is None else (wanted.power, wanted.boot, wanted.state)) == becomes


@pytest.mark.parametrize(
    ("action", "state", "suggestion"),
    [
        ("pause", "stopped", "nexus start vm"),
        ("resume", "stopped", "nexus start vm"),
        ("start", "paused", "nexus resume vm"),
        ("pause", "unknown", "nexus host ls"),
        ("reboot", "stopped", "nexus start vm"),
    ],
)
def test_refusals_say_what_to_do(action: Action, state: VmState, suggestion: str) -> None:
    power: WantedPower = "paused" if state == "paused" else "stopped"
    with pytest.raises(InvalidState) as refusal:
        decide(action, Situation("vm", state, power, 1, True))
    assert suggestion in (refusal.value.suggestion or "")


@given(statuses, st.sampled_from(POWERS), st.integers(0, 3), st.sampled_from(get_args(VmState)))
def test_an_observation_never_shows_the_past(
    status: MachineStatus, power: WantedPower, boot: int, current: VmState
) -> None:
    state = seen_state(status, current, power, boot)
    if power == "deleted":
        assert state == "deleting"
    elif settles(status, power, boot):
        assert state == ("error" if lifecycle.crashed(status, power) else status.state)
    elif power == "stopped" and boot:
        assert state == "stopping"
    if lifecycle.ended_by_itself(status, power, boot):
        assert settles(status, power, boot)
        assert status.restart_at is None


@given(
    st.lists(
        st.builds(
            scheduler.HostRoom,
            id=st.builds(new_id),
            healthy=st.booleans(),
            mem_mib=st.integers(0, 4096),
            promised_mem_mib=st.integers(0, 8192),
        ),
        max_size=6,
    ),
    st.integers(16, 4096),
)
def test_placement_keeps_promises(hosts: list[scheduler.HostRoom], mem_mib: int) -> None:
    request = scheduler.Request(vcpu=1, mem_mib=mem_mib)
    fitting = [h for h in hosts if h.healthy and h.mem_mib - h.promised_mem_mib >= mem_mib]
    try:
        placement = scheduler.place(request, hosts)
    except NoCapacity as error:
        refusal: NoCapacity | None = error
    else:
        refusal = None
    if refusal is not None:
        assert refusal.suggestion
        assert not fitting
        return
    assert placement.host_id in {host.id for host in fitting}
    assert scheduler.place(request, list(reversed(hosts))) == placement


@given(
    st.integers(24, 30),
    st.sets(st.integers(0, 255), max_size=200),
    st.integers(0, 2**32 - 1) | st.integers(0x0A4D0000, 0x0A4D00FF),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted), max_size=4),
)
def test_addresses_are_free_and_usable(
    prefix: int, used: set[int], after: int, held: list[list[int]]
) -> None:
    base = int.from_bytes(bytes([10, 77, 0, 0]))
    cidr = f"10.77.0.0/{prefix}"
    size = 2 ** (32 - prefix)
    reserved = [f"10.77.0.{first}-10.77.0.{last}" for first, last in held]
    free = set(range(2, size - 1)) - used
    free -= {n for first, last in held for n in range(first, last + 1)}
    taken = {base + n for n in used}
    found = ipam.free_addresses(cidr, "10.77.0.1", taken, after, reserved)
    seen = set()
    with suppress(AddressPoolExhausted):
        seen.update(int(each) - base for each in found)
    assert seen == free
    try:
        address = next(ipam.free_addresses(cidr, "10.77.0.1", taken, after, reserved))
    except AddressPoolExhausted:
        assert not free
        return
    assert int(address) - base in free
    assert ipam.with_prefix(address, cidr) == f"{address}/{prefix}"


def test_a_large_reservation_costs_nothing() -> None:
    held = ["10.0.0.0-10.255.255.200"]
    found = ipam.free_addresses("10.0.0.0/8", "10.0.0.1", (), 0, held)
    assert str(next(found)) == "10.255.255.201"


@given(st.builds(new_id))
def test_macs_are_local_unicast_and_stable(vm_id: str) -> None:
    mac = ipam.mac_for(vm_id, "eth0")
    assert mac == ipam.mac_for(vm_id, "eth0") != ipam.mac_for(vm_id, "eth1")
    assert int(mac[:2], 16) & 3 == 2


@given(st.integers(1, 1000), st.floats(0, 1))
def test_backoff_grows_and_is_bounded(attempts: int, jitter: float) -> None:
    assert 0 < backoff_s(attempts, jitter) <= BACKOFF_MOST_S
    assert backoff_s(attempts, 0) <= backoff_s(attempts + 1, 0)
    assert timedelta(seconds=backoff_s(1, 1)) <= timedelta(seconds=0.25)
