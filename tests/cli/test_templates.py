"""Templates and rollouts on the command line, and by the asynchronous client."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from nexus.api.rollouts import RolloutCreate
from nexus.api.templates import TemplateCreate, TemplateInstantiate
from nexus.api.vms import VmSpec
from nexus.cli import templates
from nexus.cli.app import app
from nexus.cli.exits import UsageFault
from nexus.cli.session import Session
from nexus.client import AsyncClient
from tests.cli.calling import call, environment
from tests.client.wire import TOKEN, Wire, make_vm
from tests.client.wire_templates import ID, VM_TEMPLATE


def here(wire: Wire, *arguments: str) -> str:
    """What the command prints when it runs in this process; it must succeed."""
    with capture_logs():  # of the server, which runs in this process as well
        ended = CliRunner().invoke(app, arguments, env=environment(wire))
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return ended.stdout


def test_a_life_of_a_template(wire: Wire, tmp_path: Path) -> None:
    wire.vms.append(make_vm("of-it", template=VM_TEMPLATE))
    file = tmp_path / "spec.yaml"
    file.write_text("spec:\n  mem_mib: 64\n  tags: {team: blue}\n")
    options = ["--mem", "128M", "--drive", "d,size=1G", "--ttl", "2h", "--note", "first"]
    made = here(wire, "template", "create", "worker", "-f", str(file), *options)
    assert "note 1" in made
    assert wire.bodies == [
        {
            "name": "worker",
            "spec": {
                "mem_mib": 128,
                "tags": {"team": "blue"},
                "drives": [{"name": "d", "size_mib": 1024}],
                "ttl": 7200,
            },
            "note": "first",
        }
    ]
    ran = ["template", "run", "worker", "--name", "job", "--tag", "a=b", "--version", "1"]
    assert here(wire, *ran, "-o", "name") == "job\n"
    assert wire.bodies[-1] == {"name": "job", "tags": {"a": "b"}, "version": 1}
    shown = here(wire, "template", "diff", "worker", "1", "2")
    assert shown.splitlines()[1].split() == ["mem_mib", "64", "128"]
    assert here(wire, "template", "diff", "--vm", "of-it") == "worker 1 and VM of-it are the same\n"
    assert here(wire, "template", "ls").splitlines()[1].split()[:4] == ["worker", "2", "1", "64M"]
    assert here(wire, "template", "versions", "worker", "-o", "name") == "1\n2\n"
    assert "tags" in here(wire, "template", "show", "worker")
    assert here(wire, "template", "rm", "worker") == "worker\n"
    assert here(wire, "ls", "--template", "worker", "-o", "name")
    assert wire.asked_for("GET", "/v1/vms")[-1]["template"] == "worker"


def test_a_rollout_that_halts_is_a_failure(wire: Wire) -> None:
    begun = ["template", "rollout", "bad", "--batch", "50%", "--tag", "t=x", "--pause", "30s"]
    ended = call(wire, *begun)
    assert ended.returncode == 1
    assert b"1 of 2 VMs failed, none may" in ended.stderr
    assert f"nexus rollout resume {ID}".encode() in ended.stderr
    assert b"no such kernel" in ended.stdout
    assert wire.bodies[-1] == {
        "selector": {"t": "x"},
        "batch": "50%",
        "max_failures": 0,
        "pause_s": 30,
        "rootfs": "keep",
        "health": "running",
        "steady_s": 5,
        "timeout_s": 120,
    }
    assert here(wire, "rollout", "rollback", ID, "-o", "name") == f"{ID}\n"
    assert here(wire, "rollout", "ls").splitlines()[1].split()[:4] == [
        ID,
        "worker",
        "2",
        "rolled_back",
    ]
    assert "worker-1" in here(wire, "rollout", "show", ID)


def session(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("NEXUS_TOKEN", TOKEN)
    return Session(url=wire.url, token_file=None, data=None, output="name")


def test_an_editor_makes_a_version(
    wire: Wire,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/^mem_mib: 64/mem_mib: 96/; /^start:/d' \"$1\"\n")
    editor.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(editor))
    here = session(wire, monkeypatch)
    templates.edit(here, "worker", "why")
    (body,) = wire.bodies
    assert body["spec"] == VmSpec(mem_mib=96).model_dump(mode="json")
    assert (body["note"], body["if-match"]) == ("why", '"7"')
    monkeypatch.setenv("EDITOR", "true")
    templates.edit(here, "worker", "")
    assert len(wire.bodies) == 1
    assert "nothing was changed" in capsys.readouterr().err
    monkeypatch.setenv("EDITOR", str(tmp_path / "none"))
    with pytest.raises(UsageFault, match="EDITOR"):
        templates.edit(here, "worker", "")
    assert [file.name for file in tmp_path.iterdir()] == ["editor"]


@pytest.mark.parametrize(
    "text", ["- a\n", "mem_mib: [\n", "1: 2\n", "spec: 1\nmem_mib: x\n", "name: x\n"]
)
def test_a_file_that_is_no_spec(wire: Wire, tmp_path: Path, text: str) -> None:
    file = tmp_path / "spec"
    file.write_text(text)
    here = Session(url=wire.url, token_file=None, data=None, output=None)
    with pytest.raises(UsageFault):
        templates.update(here, "worker", {}, str(file), "", {})
    assert wire.asked == []


@pytest.mark.anyio
async def test_the_asynchronous_client(wire: Wire) -> None:
    async with AsyncClient(wire.url, TOKEN) as client:
        made = await client.templates.create(TemplateCreate(name="a", spec=VmSpec(vcpu=2)))
        assert (made.name, wire.bodies[-1]["spec"]) == ("a", {"vcpu": 2})
        assert [each.name async for each in client.templates.list(name="w")] == ["worker"]
        assert [each.version async for each in client.templates.versions("a")] == [1, 2]
        assert (await client.templates.version("a", 1)).note == "note 1"
        assert (await client.templates.get_with_etag("a"))[1] == '"7"'
        assert (await client.templates.update("a", VmSpec(vcpu=3))).spec.vcpu == 3
        assert (await client.templates.diff("a")).changes[0].field == "mem_mib"
        of_it = await client.templates.instantiate("a", TemplateInstantiate(name="b"))
        assert of_it.item.name == "b"
        await client.templates.delete("a")
        seen: list[str] = []
        rollout = await client.rollouts.create("bad", RolloutCreate(batch=2))
        ended = await client.rollouts.wait(rollout.id, progress=lambda now: seen.append(now.state))
        assert (ended.state, seen) == ("halted", ["halted"])
        for act in ("resume", "halt", "cancel", "rollback"):
            await getattr(client.rollouts, act)(rollout.id)
        assert (await client.rollouts.get(rollout.id)).state == "rolled_back"
        assert [each.id async for each in client.rollouts.list(template="a")] == [rollout.id]
        assert [vm.vm_name async for vm in client.rollouts.vms(rollout.id)] == ["worker-1"]
