"""Snapshots on the command line, and by the asynchronous client."""

from pathlib import Path

import pytest

from nexus.api.vm_snapshots import SnapshotClone
from nexus.client import AsyncClient, ConflictError
from tests.cli.calling import call, done, done_json
from tests.cli.test_completion import tab
from tests.client.wire import TOKEN, Wire
from tests.client.wire_snapshots import ARCHIVE, make_snapshot


def test_a_life_of_a_snapshot(wire: Wire) -> None:
    made = done(wire, "snapshot", "create", "web", "base").splitlines()[1].split()
    assert made[:5] == ["base", "ready", "web", "full", "128M"]
    assert wire.asked_for("POST", "/v1/vms/web/snapshots")[0]["wait"] == "ready"
    assert done(wire, "snapshot", "create", "web", "--diff", "-o", "name") == "web-1\n"
    assert wire.bodies == [{"name": "base", "kind": "full"}, {"kind": "diff"}]
    failed = call(wire, "snapshot", "create", "web", "broken")
    assert (failed.returncode, b"ENOSPC" in failed.stderr, b"try: df -h" in failed.stderr) == (
        1,
        True,
        True,
    )
    listed = done(wire, "snapshot", "ls", "--vm", "web", "-o", "name")
    assert listed.split() == ["base", "web-1", "broken"]
    assert wire.asked_for("GET", "/v1/snapshots")[0]["vm"] == "web"
    assert "stood" in done(wire, "snapshot", "show", "base")
    assert done_json(wire, "snapshot", "show", "base", "-o", "json")["item"]["pause_ms"] == 12.5
    assert done(wire, "snapshot", "rename", "base", "gold") == "gold\n"
    assert tab(wire, "nexus snapshot show go") == ["gold"]
    assert done(wire, "snapshot", "rm", "gold", "broken").split() == ["gold", "broken"]
    assert call(wire, "snapshot", "rm", "parent").returncode == 1
    assert call(wire, "snapshot", "show", "gold").returncode == 3
    assert call(wire, "snapshot", "create", "web", "No Name").returncode == 2


def test_clones_and_the_way_back(wire: Wire) -> None:
    wire.snapshots = [make_snapshot(wire.vms[0], "base")]
    three = ["clone", "base", "--name", "job", "--count", "3", "--tag", "a=b", "--ttl", "2h"]
    assert done(wire, "snapshot", *three, "-o", "name").split() == ["job-1", "job-2", "job-3"]
    sent = {"name": "job", "count": 3, "tags": {"a": "b"}, "ttl": 7200, "start": True}
    assert wire.bodies == [sent]
    paused = done(wire, "snapshot", "clone", "base", "--no-start", "--network", "lab")
    assert "paused" in paused
    assert wire.bodies[1] == {"networks": ["lab"], "start": False}
    asked = wire.asked_for("POST", "/v1/snapshots/base/instantiate")
    assert [query["wait"] for query in asked] == ["running", "paused"]
    assert f"base ({wire.snapshots[0].id}) at boot 1" in done(wire, "show", "job-1")
    back = done_json(wire, "snapshot", "restore", "web", "base", "-o", "json")["item"]
    assert (back["boot"], back["origin"]["name"]) == (2, "base")
    assert call(wire, "snapshot", "clone", "nope").returncode == 3
    assert call(wire, "snapshot", "clone", "base", "--ttl", "soon").returncode == 2


def test_archives(wire: Wire, tmp_path: Path) -> None:
    wire.snapshots = [make_snapshot(wire.vms[0], name) for name in ("base", "short")]
    told = call(wire, "snapshot", "export", "base", cwd=tmp_path)
    assert told.stdout == b"base.nexus-snapshot.tar\n", told.stderr
    file = tmp_path / "base.nexus-snapshot.tar"
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (ARCHIVE, 0o600)
    assert call(wire, "snapshot", "export", "base", "-").stdout == ARCHIVE
    broken = call(wire, "snapshot", "export", "short", cwd=tmp_path)
    assert broken.returncode == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name], "no half of one is left"
    assert call(wire, "snapshot", "import", str(file), "-o", "name").stdout == b"imported\n"
    named = call(wire, "snapshot", "import", "-", "--name", "two", stdin=b"from a pipe")
    assert (named.returncode, wire.uploaded) == (0, b"from a pipe")
    assert call(wire, "snapshot", "import", str(tmp_path / "nope")).returncode == 2


def test_a_schedule(wire: Wire) -> None:
    set_so = done(wire, "snapshot", "schedule", "web", "--every", "6h", "--keep", "7")
    assert ("21600 s" in set_so, "it was stopped" in set_so) == (True, True)
    assert done_json(wire, "snapshot", "schedule", "web", "-o", "json")["item"]["keep"] == 7
    assert done(wire, "snapshot", "unschedule", "web") == "web\n"
    assert call(wire, "snapshot", "schedule", "web").returncode == 3
    assert call(wire, "snapshot", "schedule", "web", "--every", "1s", "--keep", "1").returncode == 2
    assert call(wire, "snapshot", "schedule", "web", "--keep", "1").returncode == 2


@pytest.mark.anyio
async def test_the_asynchronous_client(wire: Wire) -> None:
    async with AsyncClient(wire.url, TOKEN) as client:
        made = await client.vms.snapshot("web", name="base")
        assert (await client.snapshots.create("web", kind="diff")).kind == "diff"
        assert [one.name async for one in client.snapshots.list(vm="web")] == ["base", "web-1"]
        assert (await client.snapshots.get(made.id)).name == "base"
        clones = await client.snapshots.clone("base", SnapshotClone(name="x", count=2))
        assert [vm.name for vm in clones] == ["x-1", "x-2"]
        assert (await client.snapshots.clone("base"))[0].name == "made-up"
        restored = await client.vms.restore("web", "base", wait="running")
        assert restored.origin is not None
        assert (await client.snapshots.rename("base", "gold")).name == "gold"
        await client.vms.set_snapshot_schedule("web", every_s=60, keep=1)
        assert (await client.vms.snapshot_schedule("web")).every == 60
        await client.vms.delete_snapshot_schedule("web")
        await client.snapshots.delete("gold")
        with pytest.raises(ConflictError):
            await client.snapshots.delete("parent")
