"""Changing drives, NICs and balloons by both clients."""

import pytest

from nexus.api.devices import DriveChange, DriveLimits, NicChange, NicLimits
from nexus.client import AsyncClient, Client, NexusApiError
from tests.client.wire import TOKEN, Wire

CHANGE = DriveChange(limits=DriveLimits(iops=100, bandwidth_mib_s=None))


def test_only_what_was_given_is_sent(client: Client, wire: Wire) -> None:
    assert client.vms.change_drive("web", "data", CHANGE, timeout_s=9).name == "web"
    client.vms.change_drive("web", "data", DriveChange(size_mib=64), wait=False)
    client.vms.change_nic("web", "eth0", NicChange(limits=NicLimits(rx_mbit_s=5)))
    client.vms.change_nic("web", "eth0", NicChange(limits=None))
    client.vms.set_balloon("web", 64)
    assert wire.bodies == [
        {"limits": {"iops": 100, "bandwidth_mib_s": None}},
        {"size_mib": 64},
        {"limits": {"rx_mbit_s": 5}},
        {"limits": None},
        {"target_mib": 64},
    ]
    assert wire.asked_for("PATCH", "/v1/vms/web/drives/data") == [
        {"wait": "applied", "timeout_s": "9"},
        {},
    ]
    assert wire.asked_for("PATCH", "/v1/vms/web/balloon") == [{"wait": "applied"}]
    with pytest.raises(NexusApiError) as caught:
        client.vms.set_balloon("fault", 64)
    assert caught.value.fault_message == "not activated yet"


@pytest.mark.anyio
async def test_the_same_awaited(wire: Wire) -> None:
    async with AsyncClient(wire.url, TOKEN) as client:
        await client.vms.change_drive("web", "data", CHANGE)
        await client.vms.change_nic("web", "eth0", NicChange(limits=None), wait=False)
        assert (await client.vms.set_balloon("web", 0)).name == "web"
    assert [method for method, *_ in wire.asked] == ["PATCH"] * 3
    assert wire.bodies[-1] == {"target_mib": 0}
