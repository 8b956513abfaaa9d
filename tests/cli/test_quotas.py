"""Quotas on the command line, and by the asynchronous client."""

import pytest

from nexus.api.quotas import Quota
from nexus.client import AsyncClient
from tests.cli.calling import call, done, done_json
from tests.client.wire import TOKEN, Wire


def test_a_quota_is_shown_and_changed(wire: Wire) -> None:
    shown = [line.split() for line in done(wire, "quota", "show").splitlines()]
    assert shown[1:3] == [["VMs", "2", "5"], ["vCPUs", "3", "-"]]
    changed = done_json(wire, "quota", "set", "--mem", "8G", "--vms", "none", "-o", "json")["item"]
    assert changed["limits"] == {"vms": None, "vcpu": None, "mem_mib": 8192, "disk_mib": None}
    assert call(wire, "quota", "set", "--mem", "much").returncode == 2


def test_usage_of_projects_and_hosts(wire: Wire) -> None:
    lines = done(wire, "usage").splitlines()
    assert "12 MiB of 300 MiB" in lines[1]
    assert "? of 64 MiB" in lines[1]
    assert lines[4].startswith("host-one")
    assert lines[4].endswith("1.0 GiB of 2.0 GiB")


@pytest.mark.anyio
async def test_the_asynchronous_client(wire: Wire) -> None:
    async with AsyncClient(wire.url, TOKEN) as client:
        assert (await client.quotas.get()).used.vms == 2
        limits = Quota(disk_mib=7)
        assert (await client.quotas.set("blue", limits)).limits == limits
        assert (await client.usage()).hosts[0].space.disks.promised_mib == 300
