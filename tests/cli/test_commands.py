"""Every command: what it asks for, what it prints, and its exit code."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from nexus.api.endings import LastExit
from nexus.api.vms import VmError, VmEvent
from nexus.cli.app import app
from tests.cli.calling import call, command, done, done_json, environment
from tests.client.wire import NOW, Wire, make_vm


def test_run_makes_a_vm_and_waits(wire: Wire, tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1 me\n")
    data = tmp_path / "data"
    data.write_text("#!/bin/sh\n")
    options = ["--name", "db", "--vcpu", "2", "--mem", "1G", "--tag", "a=b=c"]
    options += ["--ssh-key", str(key), "--user-data", str(data), "--timeout", "9"]
    answer = done_json(wire, "-o", "json", "run", "busybox", *options)
    assert answer["item"]["name"] == "db"
    assert answer["id"] == answer["item"]["id"]
    assert wire.asked_for("POST", "/v1/vms") == [{"wait": "running", "timeout_s": "9.0"}]
    (body,) = wire.bodies
    assert body["rootfs"] == "busybox"
    assert (body["vcpu"], body["mem_mib"], body["tags"]) == (2, 1024, {"a": "b=c"})
    assert body["ssh_keys"] == ["ssh-ed25519 AAAAC3NzaC1lZDI1 me"]
    assert body["user_data"] == "#!/bin/sh\n"


@pytest.mark.parametrize(
    ("flags", "query"),
    [
        (["--no-wait"], {}),
        (["--no-start"], {"wait": "configured", "timeout_s": "60"}),
    ],
)
def test_run_waits_for_what_was_asked(wire: Wire, flags: list[str], query: dict[str, str]) -> None:
    assert done(wire, "run", "busybox", "--name", "db", *flags, "-o", "name") == "db\n"
    (asked,) = wire.asked_for("POST", "/v1/vms")
    assert {name: value.removesuffix(".0") for name, value in asked.items()} == query


def test_run_of_a_vm_that_fails_is_a_failure(wire: Wire) -> None:
    ended = call(wire, "run", "busybox", "--name", "broken")
    assert ended.returncode == 1
    assert b"failed in stage boot: no kernel" in ended.stderr
    assert b"bad ELF" in ended.stderr
    assert b"try: nexus logs" in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "busybox", "--mem", "lots"],
        ["run", "busybox", "--name", "Not A Name"],
        ["run", "busybox", "--tag", "novalue"],
        ["run", "busybox", "--user-data", "/nowhere/at/all"],
        ["run", "busybox", "--ttl", "soon"],
        ["run", "busybox", "--restart", "sometimes"],
        ["run", "busybox", "--expires-at", "2030-01-01"],
        ["set", "web"],
        ["set", "web", "--ttl", "1h", "--expires-at", "never"],
        ["stop"],
        ["ls", "--state", "asleep"],
        ["events", "--state", "asleep"],
        ["events", "--since", "yesterday"],
        ["events", "--after", "-1"],
        ["image", "add", "rootfs", "Bad Name", "x"],
        ["nonsense"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(wire: Wire, arguments: list[str]) -> None:
    ended = call(wire, *arguments)
    assert ended.returncode == 2
    assert ended.stderr
    assert wire.asked == []


def test_ls_narrows(wire: Wire) -> None:
    done(wire, "ls", "--tag", "a=b", "--host", "one", "--project", "default")
    assert wire.asked_for("GET", "/v1/vms") == [{"tag": "a=b", "host": "one", "project": "default"}]


def test_rename(wire: Wire) -> None:
    assert done(wire, "rename", "web", "new") == "new\n"
    assert done_json(wire, "rename", "new", "newer", "-o", "json")["item"]["name"] == "newer"
    assert call(wire, "rename", "newer", "Not A Name").returncode == 2
    assert call(wire, "rename", "nobody", "x").returncode == 3


def test_tag_changes_what_is_named_and_no_more(wire: Wire) -> None:
    wire.vms = [make_vm("web", tags={"old": "1", "kept": "2"})]
    wire.changes_between = 2
    assert done(wire, "tag", "web", "new=a=b", "old-", "gone-") == (
        "web: kept=2, theirs=1, new=a=b\n"
    )
    assert wire.vms[0].tags == {"kept": "2", "theirs": "1", "new": "a=b"}
    assert done(wire, "tag", "web", "kept-", "-o", "name") == "web\n"


@pytest.mark.parametrize("change", ["novalue", "-", "a b=c", "a=\n"])
def test_what_is_no_tag_is_a_usage_error(wire: Wire, change: str) -> None:
    assert call(wire, "tag", "web", "--", change).returncode == 2
    assert wire.asked_for("PATCH", "/v1/vms/web") == []


def test_ls_as_table_json_and_names(wire: Wire) -> None:
    wire.vms = [make_vm("one"), make_vm("two", state="paused"), make_vm("three")]
    table = done(wire, "ls").splitlines()
    assert table[0].split()[:3] == ["NAME", "STATE", "ADDRESS"]
    assert [line.split()[:3] for line in table[1:3]] == [
        ["one", "running", "10.77.0.5"],
        ["two", "paused", "10.77.0.5"],
    ]
    assert done(wire, "ps", "-o", "name") == "one\ntwo\nthree\n"
    before, after = done_json(wire, "-o", "json", "ls"), done_json(wire, "ls", "-o", "json")
    assert before == after
    assert [vm["id"] for vm in before["items"]] == [vm.id for vm in wire.vms]


def test_yaml_says_what_json_says(wire: Wire) -> None:
    for arguments in (["ls"], ["show", "web"], ["image", "ls"], ["host", "ls"]):
        text = done(wire, *arguments, "-o", "yaml")
        assert yaml.safe_load(text) == done_json(wire, *arguments, "-o", "json")
        assert done(wire, "-o", "yaml", *arguments) == text


def test_show(wire: Wire) -> None:
    text = done(wire, "show", "web")
    assert wire.vms[0].id in text
    assert "10.77.0.5/20" in text
    assert "created" in text
    assert done_json(wire, "show", "web", "-o", "json")["item"]["name"] == "web"


def test_why_ends_with_what_to_type(wire: Wire) -> None:
    text = done(wire, "why", "web")
    assert text.startswith("web could not start\n")
    assert "the VMM says" in text
    assert "  | one\n" in text
    assert text.endswith("next:\n  nexus logs web --source vmm\n  nexus start web\n")
    assert done_json(wire, "why", "web", "-o", "json")["item"]["error"]["stage"] == "boot"
    assert call(wire, "why", "nobody").returncode == 3


def test_the_vmms_own_api(wire: Wire) -> None:
    assert done_json(wire, "firecracker", "web", "GET", "/vm/config") == {"asked": "vm/config"}
    assert done(wire, "firecracker", "web", "patch", "vm", '{"state": "Paused"}') == ""
    assert wire.bodies == [{"state": "Paused"}]
    assert call(wire, "firecracker", "web", "PATCH", "vm", "{").returncode == 2
    assert call(wire, "firecracker", "web", "DELETE", "vm").returncode == 2


def test_show_says_why_a_vm_failed(wire: Wire) -> None:
    error = VmError(stage="disk", message="no space", suggestion="df -h", log_tail=["a line"])
    wire.vms = [make_vm("web", state="error", error=error)]
    text = done(wire, "show", "web")
    assert [word in text for word in ("no space", "df -h", "  | a line", "nexus why web")] == [
        True
    ] * 4


@pytest.mark.parametrize("action", ["start", "stop", "pause", "resume", "reboot", "restart"])
def test_actions_name_what_they_did(wire: Wire, action: str) -> None:
    wire.vms.append(make_vm("db"))
    assert done(wire, action, "web", "db") == "web\ndb\n"
    assert len(wire.asked_for("POST", "/v1/vms/actions")) == 1
    answer = done_json(wire, action, "web", "-o", "json")
    assert answer == {"items": [{"id": wire.vms[0].id, "name": "web", "ok": True}]}


@pytest.mark.parametrize(("verb", "state"), [("stop", "stopped"), ("reboot", "running")])
def test_stop_and_reboot_pass_force_and_time(wire: Wire, verb: str, state: str) -> None:
    done(wire, verb, "web", "--force", "--timeout", "3")
    assert wire.asked_for("POST", "/v1/vms/actions") == [{"wait": state, "timeout_s": "53.0"}]
    (body,) = wire.bodies
    assert (body["action"], body["ids"]) == (verb, ["web"])
    assert (body["force"], body["stop_timeout_s"]) == (True, 3.0)


def test_actions_on_what_has_tags(wire: Wire) -> None:
    wire.vms = [make_vm("a", tags={"team": "blue"}), make_vm("b"), make_vm("c", state="stopped")]
    assert done(wire, "stop", "--tag", "team=blue") == "a\n"
    assert wire.bodies[0]["selector"] == {"team": "blue"}
    assert done(wire, "rm", "-f", "--tag", "team=blue") == "a\n"
    assert [vm.name for vm in wire.vms] == ["b", "c"]
    assert call(wire, "stop").returncode == 2
    assert call(wire, "stop", "b", "--tag", "team=blue").returncode == 2


def test_one_that_fails_keeps_no_other(wire: Wire) -> None:
    wire.vms.append(make_vm("off", state="stopped"))
    ended = call(wire, "pause", "off", "nobody", "web")
    assert ended.stdout == b"web\n"
    assert ended.returncode == 3
    assert b"try: nexus start off" in ended.stderr


def test_run_many_for_some_time(wire: Wire) -> None:
    options = ["--count", "3", "--ttl", "1h30m", "--restart", "on-failure"]
    shown = done(wire, "run", "busybox", "--name", "job", *options, "-o", "name")
    assert shown == "job-1\njob-2\njob-3\n"
    (body,) = wire.bodies
    assert (body["count"], body["ttl"], body["restart_policy"]) == (3, 5400, "on-failure")


def test_set_and_show_terms(wire: Wire) -> None:
    assert "restart policy always" in done(wire, "set", "web", "--restart", "always")
    at = "2030-01-01T00:00:00+00:00"
    assert f"expires {at}" in done(wire, "set", "web", "--expires-at", at)
    done(wire, "set", "web", "--ttl", "2h")
    done(wire, "set", "web", "--ttl", "never")
    assert wire.bodies[2:] == [{"ttl": 7200}, {"expires_at": None}]
    last = LastExit(at=NOW, cause="crashed", message="the VMM ended by itself by signal 9")
    wire.vms = [make_vm("web", restart_policy="on-failure", restarts=3, last_exit=last)]
    text = done(wire, "show", "web")
    for word in ("on-failure", "restarts", "by signal 9 at 2026-01-02"):
        assert word in text


def test_rm_takes_running_vms_only_by_force(wire: Wire) -> None:
    wire.vms.append(make_vm("old", state="stopped"))
    refused = call(wire, "rm", "web", "old")
    assert refused.returncode == 1
    assert refused.stdout == b"old\n"
    assert b"try: nexus rm -f web" in refused.stderr
    assert done(wire, "rm", "-f", "web") == "web\n"
    assert wire.vms == []


def test_logs(wire: Wire) -> None:
    assert done(wire, "logs", "web") == "one\n\x1b[31mtwo\x1b[0m\nthree\n"
    assert done(wire, "logs", "web", "--tail", "1") == "three\n"
    assert done(wire, "logs", "-f", "web", "--tail", "1") == "three\nfour\n"
    assert done_json(wire, "logs", "web", "-o", "json")["item"]["lines"][0] == "one"


def test_events(wire: Wire) -> None:
    lines = done(wire, "events", "web").splitlines()
    assert [line.split()[2] for line in lines] == ["REASON", "r1", "r2", "r3", "r4"]
    assert "VM" in done(wire, "events").splitlines()[0].split()
    assert wire.asked_for("GET", "/v1/events")[-1].get("since")
    assert len(done_json(wire, "events", "web", "-o", "json")["items"]) == 4
    assert done(wire, "events", "--after", "2", "-o", "name") == "web\nweb\n"


@pytest.mark.parametrize("output", ["json", "table", "yaml"])
def test_events_are_followed_line_by_line(wire: Wire, output: str) -> None:
    wire.pruned_to = 2
    with subprocess.Popen(
        command("events", "-f", "--after", "1", "-o", output),
        env=environment(wire) | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        if output == "table":
            assert following.stdout.readline().split()[:2] == ["TIME", "VM"]
        count = 2 if output != "yaml" else 2 * (len(VmEvent.model_fields) + 1)
        lines = [following.stdout.readline() for _ in range(count)]
        following.send_signal(signal.SIGINT)
        assert following.wait(30) == 130
        assert "no longer kept" in following.stderr.read()
    if output == "json":
        assert [json.loads(line)["id"] for line in lines] == [3, 4]
    elif output == "yaml":
        assert [event["id"] for event in yaml.safe_load_all("".join(lines))] == [3, 4]
    else:
        assert [line.split()[3] for line in lines] == ["r3", "r4"]


def test_images(wire: Wire) -> None:
    done(wire, "image", "add", "kernel", "mine", "mine")
    assert done(wire, "image", "ls", "-o", "name") == "busybox\nmine\n"
    assert "1.0 MiB" in done(wire, "image", "ls", "--kind", "kernel")
    assert done_json(wire, "image", "show", "mine", "-o", "json")["item"]["kind"] == "kernel"
    assert done(wire, "image", "rm", "mine") == "mine\n"
    assert done_json(wire, "image", "ls", "--kind", "kernel", "-o", "json")["items"] == []


def test_image_build_follows_the_build(wire: Wire) -> None:
    ended = call(wire, "image", "build", "busybox", "-o", "json")
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["item"]["state"] == "succeeded"
    assert b"busybox" in call(wire, "image", "build", "busybox").stderr


def test_image_build_takes_packages_and_a_size(wire: Wire) -> None:
    options = ["--name", "debian:12", "-p", "nginx", "-p", "curl", "--size", "2G"]
    answer = done_json(wire, "image", "build", "debian", *options, "-o", "json")
    expected = {"name": "debian:12", "packages": ["nginx", "curl"], "size_mib": 2048}
    assert answer["item"]["options"] == expected | {"source": None}
    source = "docker://registry.example/team/app:1.0"
    answer = done_json(wire, "image", "build", "oci", source, "--name", "app:1.0", "-o", "json")
    assert answer["item"]["options"]["source"] == source
    for wrong in (
        ["busybox", "-p", "nginx"],
        ["debian", "-p", "a b"],
        ["debian", "--size", "x"],
        ["oci", "--name", "x"],
        ["oci", source],
        ["oci", "/etc", "--name", "x"],
    ):
        assert call(wire, "image", "build", *wrong).returncode == 2


def test_hosts(wire: Wire) -> None:
    assert "host-one" in done(wire, "host", "ls")
    assert done_json(wire, "host", "ls", "-o", "json")["items"][0]["engine"] == "qemu"


@pytest.mark.parametrize(
    ("arguments", "token", "code"),
    [
        (["start", "fault"], "wire-token", 1),
        (["show", "nobody"], "wire-token", 3),
        (["ls"], "wrong", 4),
        (["stop", "web"], "viewer", 4),
        (["stop", "stuck"], "wire-token", 5),
    ],
)
def test_exit_codes(wire: Wire, arguments: list[str], token: str, code: int) -> None:
    ended = call(wire, *arguments, token=token)
    assert ended.returncode == code
    lines = ended.stderr.decode().splitlines()
    assert lines[0].startswith("nexus: ")
    assert lines[-1].startswith("try: ")
    assert ended.stdout == b""


def test_the_vmms_own_words_are_shown(wire: Wire) -> None:
    assert b"no such drive" in call(wire, "start", "fault").stderr


def test_a_dead_manager_is_explained(wire: Wire, free_port: int) -> None:
    wire.url = f"http://127.0.0.1:{free_port}"
    ended = call(wire, "ls")
    assert ended.returncode == 1
    assert b"try: is Nexus running? start it with: nexus up" in ended.stderr


def test_a_reader_that_leaves_is_no_error(wire: Wire) -> None:
    wire.vms = [make_vm(f"vm-{number}") for number in range(200)]
    env = environment(wire) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    listing = subprocess.Popen(
        [sys.executable, "-m", "nexus", "ls", "-o", "json"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert listing.stdout is not None
    assert listing.stderr is not None
    listing.stdout.readline()
    listing.stdout.close()
    with listing:
        assert listing.stderr.read() == b""


def _commands() -> list[list[str]]:
    def walk(group: typer.Typer) -> list[list[str]]:
        named = [
            [each.name or getattr(each.callback, "__name__", "")]
            for each in group.registered_commands
        ]
        for below in group.registered_groups:
            if below.typer_instance is not None:
                prefix = [below.name] if isinstance(below.name, str) else []
                named += [[*prefix, *path] for path in walk(below.typer_instance)]
        return named

    return [path for path in walk(app) if path[-1] != "ps"]


@pytest.mark.parametrize("path", _commands(), ids=" ".join)
def test_help_shows_an_example(path: list[str]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0
    assert f"nexus {' '.join(path)}" in " ".join(shown.stdout.split())
