"""Volumes on the command line, and by the asynchronous client."""

import pytest

from nexus.api.volumes import VolumeCreate
from nexus.client import AsyncClient, ConflictError
from tests.cli.calling import call, done, done_json
from tests.client.wire import TOKEN, Wire


def test_a_life_of_a_volume(wire: Wire) -> None:
    made = done(wire, "volume", "create", "data", "--size", "2G")
    assert made.splitlines()[1].split()[:5] == ["data", "attached", "2048", "MiB", "web"]
    assert wire.bodies == [{"name": "data", "size_mib": 2048}]
    assert done(wire, "volume", "ls", "-o", "name") == "data\n"
    assert done_json(wire, "volume", "ls", "-o", "json")["items"][0]["vm_name"] == "web"
    assert done_json(wire, "volume", "show", "data", "-o", "json")["item"]["size_mib"] == 64
    assert "64 MiB" in done(wire, "volume", "show", "data")
    assert done(wire, "volume", "rm", "data") == "data\n"
    assert call(wire, "volume", "rm", "busy").returncode == 1
    assert call(wire, "volume", "create", "data", "--size", "much").returncode == 2


@pytest.mark.anyio
async def test_the_asynchronous_client(wire: Wire) -> None:
    async with AsyncClient(wire.url, TOKEN) as client:
        made = await client.volumes.create(VolumeCreate(name="data", size_mib=8))
        assert (made.name, made.size_mib) == ("data", 8)
        assert [volume.name async for volume in client.volumes.list()] == ["data"]
        assert (await client.volumes.get("data")).vm_name == "web"
        await client.volumes.delete("data")
        with pytest.raises(ConflictError):
            await client.volumes.delete("busy")
