"""Following events, and VMs for the length of a block, sync and async."""

from itertools import islice

import anyio
import pytest

from nexus.client import AsyncClient, Client, ConflictError, EventsLost, NotFoundError, NotReachable
from tests.client.wire import TOKEN, Wire, make_vm


def test_a_list_reads_every_page(client: Client) -> None:
    assert [event.id for event in client.events()] == [1, 2, 3, 4]
    assert [event.id for event in client.events(after=2)] == [3, 4]


def test_filters_are_sent(client: Client, wire: Wire) -> None:
    list(client.events(vm="web", states=["running", "error"], reasons=["started"], after=3))
    (asked,) = wire.asked_for("GET", "/v1/events")
    assert (asked["vm"], asked["reason"], asked["after"]) == ("web", "started", "3")
    assert asked["state"] in ("running", "error")


def test_following_goes_on_over_broken_connections(client: Client, wire: Wire) -> None:
    assert [event.id for event in islice(client.events(follow=True, after=0), 4)] == [1, 2, 3, 4]
    assert [query["after"] for query in wire.asked_for("GET", "/v1/events")] == ["0", "1", "2", "3"]


def test_following_outlives_a_manager_that_fails(client: Client, wire: Wire) -> None:
    events = client.events(follow=True, after=2)
    assert next(events).id == 3
    wire.failures = [503, 502, 500]
    assert next(events).id == 4


def test_following_from_now_on_keeps_its_place(client: Client) -> None:
    assert next(iter(client.events(follow=True))).id == 4


def test_following_what_is_not_there_is_an_error(client: Client, free_port: int) -> None:
    with pytest.raises(NotFoundError):
        next(client.events(vm="nobody", follow=True))
    with Client(f"http://127.0.0.1:{free_port}", TOKEN) as nobody, pytest.raises(NotReachable):
        next(nobody.events(follow=True))


def test_lost_events_are_told(client: Client, wire: Wire) -> None:
    wire.pruned_to = 3
    with pytest.raises(EventsLost) as caught:
        next(client.events(follow=True, after=1))
    assert (caught.value.gap.to, caught.value.gap.reason) == (3, "pruned")
    assert next(client.events(follow=True, after=caught.value.gap.to)).id == 4


@pytest.mark.anyio
async def test_the_async_client_follows_too(wire: Wire) -> None:
    async with AsyncClient(wire.url, TOKEN) as client:
        found: list[int] = []
        with anyio.fail_after(30):
            async for event in client.events(follow=True, after=1):
                found.append(event.id)
                if len(found) == 3:
                    break
        assert found == [2, 3, 4]
        assert [event.id async for event in client.events()] == [1, 2, 3, 4]


def test_a_vm_lives_as_long_as_its_block(client: Client, wire: Wire) -> None:
    with client.vm("busybox", name="job", mem_mib=128, tags={"a": "b"}) as vm:
        assert vm.state == "running"
        assert "job" in [each.name for each in wire.vms]
    assert "job" not in [each.name for each in wire.vms]
    assert wire.bodies[0]["rootfs"] == "busybox"


def test_a_vm_is_deleted_when_its_block_raises(client: Client, wire: Wire) -> None:
    with pytest.raises(ZeroDivisionError), client.vm("busybox", name="job"):
        raise ZeroDivisionError
    assert [each.name for each in wire.vms] == ["web"]


def test_a_vm_that_fails_raises_its_error_and_is_deleted(client: Client, wire: Wire) -> None:
    with pytest.raises(ConflictError, match="failed in stage boot"), client.vm(name="broken"):
        pytest.fail("it does not run")
    assert [each.name for each in wire.vms] == ["web"]


def test_a_vm_that_is_gone_already_is_no_error(client: Client, wire: Wire) -> None:
    with client.vm(name="job") as vm:
        client.vms.delete(vm.id)


def test_what_could_not_be_deleted_is_told_beside_the_error(client: Client, wire: Wire) -> None:
    def fail() -> None:
        with client.vm(name="job"):
            wire.failures = [400]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    assert "nexus rm -f job" in caught.value.__notes__[0]


@pytest.mark.anyio
async def test_an_async_block_deletes_also_when_cancelled(wire: Wire) -> None:
    async with AsyncClient(wire.url, TOKEN) as client:
        with anyio.CancelScope() as scope:
            async with client.vm("busybox", name="job"):
                assert len(wire.vms) == 2
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
    assert [each.name for each in wire.vms] == ["web"]


def test_a_vm_that_takes_too_long_is_deleted(client: Client, wire: Wire) -> None:
    wire.vms = [make_vm("web")]
    wire.new_state = "requested"
    with pytest.raises(Exception, match="is requested after"), client.vm(name="slow", timeout_s=0):
        pytest.fail("it does not run")
    assert [each.name for each in wire.vms] == ["web"]
