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
    assert call(wire, "volume", "create", "data").returncode == 2


def test_volumes_of_vms_that_are_there(wire: Wire) -> None:
    done(wire, "volume", "create", "root", "--image", "busybox")
    attach = ("volume", "attach", "data", "web", "--name", "db", "--ro", "--reboot")
    assert done(wire, *attach, "--timeout", "9") == "data\n"
    assert done_json(wire, "volume", "detach", "data", "-o", "json")["item"]["name"] == "data"
    assert done(wire, "volume", "grow", "data", "2G") == "data\n"
    assert done(wire, "volume", "rename", "data", "old") == "old\n"
    assert done(wire, "volume", "snapshot", "data", "monday").splitlines()[1].startswith("monday")
    assert wire.bodies == [
        {"name": "root", "image": "busybox"},
        {"vm": "web", "name": "db", "read_only": True, "restart": True},
        {"restart": False},
        {"size_mib": 2048},
        {"name": "old"},
        {"name": "monday"},
    ]
    waited = {"wait": "applied", "timeout_s": "9.0"}
    assert wire.asked_for("POST", "/v1/volumes/data/attach") == [waited]
    refused = call(wire, "volume", "attach", "busy", "web")
    assert (refused.returncode, b"--reboot" in refused.stderr) == (1, True)
    assert call(wire, "volume", "attach", "data", "web", "--name", "config").returncode == 2
    assert call(wire, "volume", "attach", "data", "nobody").returncode == 3


@pytest.mark.anyio
async def test_the_asynchronous_client(wire: Wire) -> None:
    async with AsyncClient(wire.url, TOKEN) as client:
        made = await client.volumes.create(VolumeCreate(name="data", size_mib=8))
        assert (made.name, made.size_mib) == ("data", 8)
        assert [volume.name async for volume in client.volumes.list()] == ["data"]
        assert (await client.volumes.get("data")).vm_name == "web"
        assert (await client.volumes.update("data", name="old", size_mib=9)).name == "old"
        assert (await client.volumes.attach("data", "web")).vm_name == "web"
        assert (await client.volumes.detach("data", wait=False)).name == "data"
        assert (await client.volumes.snapshot("data", "copy")).state == "free"
        await client.volumes.delete("data")
        with pytest.raises(ConflictError):
            await client.volumes.delete("busy")
