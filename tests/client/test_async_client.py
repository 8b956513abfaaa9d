"""The async client: what differs from the sync one."""

import inspect

import anyio
import pytest

from nexus.api.vms import VmCreate
from nexus.client import AsyncClient, Client, NotFoundError, hosts, images, vms
from tests.client.wire import TOKEN, Wire, make_vm

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("sync_part", "async_part"),
    [
        (vms.Vms, vms.AsyncVms),
        (images.Images, images.AsyncImages),
        (hosts.Hosts, hosts.AsyncHosts),
    ],
)
def test_both_clients_offer_the_same(sync_part: type, async_part: type) -> None:
    offered = {name for name in vars(sync_part) if not name.startswith("_")}
    assert offered == {name for name in vars(async_part) if not name.startswith("_")}
    for name in offered:
        one, other = (inspect.signature(getattr(side, name)) for side in (sync_part, async_part))
        assert one.parameters == other.parameters, name


def test_both_clients_have_the_same_constructor() -> None:
    assert inspect.signature(Client).parameters == inspect.signature(AsyncClient).parameters


async def test_a_vm_from_create_to_delete(wire: Wire) -> None:
    async with AsyncClient(wire.url, TOKEN) as client:
        vm = await client.vms.create(VmCreate(name="db"), wait="running")
        await client.vms.stop(vm.id, wait="stopped")
        await client.vms.delete(vm.id)
        with pytest.raises(NotFoundError):
            await client.vms.get(vm.id)


async def test_pages_streams_and_retries(wire: Wire) -> None:
    wire.vms = [make_vm(f"vm-{number}") for number in range(3)]
    wire.failures = [503]
    async with AsyncClient(wire.url, TOKEN) as client:
        assert [vm.name async for vm in client.vms.list()] == ["vm-0", "vm-1", "vm-2"]
        text = b"".join([chunk async for chunk in client.vms.follow_logs("vm-0", tail=1)])
    assert text == b"three\nfour\n"


async def test_a_console_goes_both_ways(wire: Wire) -> None:
    async with AsyncClient(wire.url, TOKEN) as client, client.vms.console("web") as console:
        said = aiter(console)
        with anyio.fail_after(10):
            assert await anext(said) == b"hello from the guest\r\n"
            await console.send(b"ls")
            assert await anext(said) == b"<ls>"
            await console.send(b"bye")
            assert [chunk async for chunk in said] == []
