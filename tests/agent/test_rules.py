"""Pure rules: paths, the VMM's config, the command, the proxy's list, how a VMM ended."""

import ipaddress
import json
import os
import re
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.agent import proxy
from nexus.agent.command import Jail, choose_jail_uid, vmm_command
from nexus.agent.ending import Ending, how_it_ended, last_lines
from nexus.agent.errors import NetworkFailed, SettingsInvalid, StageFailed
from nexus.agent.firewall import Firewall
from nexus.agent.home import name_servers
from nexus.agent.installation import POOL, choose_subnet
from nexus.agent.layout import Layout, tap_name
from nexus.agent.logs import read_log
from nexus.agent.rules import Port, Rules, Segment, text_of
from nexus.agent.settings import Settings
from nexus.agent.starting import check_memory, swap_mib
from nexus.agent.vmm_config import encode, kernel_args
from nexus.api.errors import NexusError
from nexus.api.machines import Blob, Machine, MachineNic
from nexus.ids import new_id

BLOB = Blob(sha256="0" * 64, size_bytes=1)
NIC = MachineNic(
    iface="eth0",
    mac="06:00:0a:40:00:05",
    ip="10.64.0.5/20",
    gateway="10.64.0.1",
    dns=["9.9.9.9", "1.1.1.1"],
)
MACHINE = Machine(
    id="01890a5d-ac96-774b-bcce-b302099a8057",
    name="web-1",
    generation=1,
    power="running",
    boot=1,
    vcpu=2,
    mem_mib=256,
    kernel=BLOB,
    initrd=BLOB,
    rootfs=BLOB,
    kernel_args=None,
    nics=[NIC],
    user_data=None,
    ssh_keys=[],
)


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        ".",
        "..",
        "../../etc",
        "01890a5d-ac96-774b-bcce-b302099a8057/..",
        "01890a5d-ac96-774b-bcce-b302099a8057\n",
        "01890A5D-AC96-774B-BCCE-B302099A8057",
        "01890a5d-ac96-474b-bcce-b302099a8057",
        "٠١890a5d-ac96-774b-bcce-b302099a8057",
        "x" * 10_000,
    ],
)
def test_no_path_from_a_hostile_id(hostile: str) -> None:
    layout = Layout(Path("/srv/fc"))
    with pytest.raises(ValueError):
        layout.vm(hostile)
    with pytest.raises(ValueError):
        layout.trash(hostile)


@given(st.text())
def test_every_path_stays_in_the_run_directory(text: str) -> None:
    try:
        paths = Layout(Path("/srv/fc")).vm(text)
    except ValueError:
        return
    assert paths.socket == Path("/srv/fc/vms") / text / "root" / "api.sock"


def test_a_jailed_root_is_where_the_jailer_puts_it() -> None:
    paths = Layout(Path("/srv/fc")).vm(MACHINE.id, jailed=True)
    assert paths.root == Path(f"/srv/fc/vms/{MACHINE.id}/firecracker/{MACHINE.id}/root")


def test_tap_names_fit_and_differ() -> None:
    names = {tap_name(new_id(), index) for _ in range(50) for index in range(8)}
    assert len(names) == 400
    assert all(len(name) == 13 and name.startswith("nx") for name in names)


def test_the_config_names_only_relative_paths() -> None:
    config = json.loads(encode(MACHINE))
    assert config["boot-source"]["kernel_image_path"] == "kernel"
    assert config["boot-source"]["initrd_path"] == "initrd"
    assert [drive["path_on_host"] for drive in config["drives"]] == ["rootfs.ext4"]
    assert config["machine-config"] == {"vcpu_count": 2, "mem_size_mib": 256}
    assert config["network-interfaces"] == [
        {
            "iface_id": "eth0",
            "guest_mac": "06:00:0a:40:00:05",
            "host_dev_name": tap_name(MACHINE.id, 0),
        }
    ]
    assert config["vsock"] == {"guest_cid": 3, "uds_path": "v.sock"}


def test_the_guest_reads_its_network_from_the_command_line() -> None:
    assert kernel_args(MACHINE) == (
        "console=ttyS0 reboot=k panic=1 quiet nexus.hostname=web-1 "
        "nexus.ip=eth0,06:00:0a:40:00:05,10.64.0.5/20,10.64.0.1 nexus.dns=9.9.9.9,1.1.1.1"
    )


def test_own_kernel_arguments_replace_the_default_ones() -> None:
    own = MACHINE.model_copy(update={"kernel_args": "panic=0", "nics": []})
    assert kernel_args(own) == "panic=0 nexus.hostname=web-1"


def test_ssh_keys_bring_a_config_drive_that_is_read_only() -> None:
    keyed = MACHINE.model_copy(update={"ssh_keys": ["ssh-ed25519 AAAAAAAAAAAAAAAA"]})
    drives = json.loads(encode(keyed))["drives"]
    assert drives[1]["path_on_host"] == "config.iso"
    assert drives[1]["is_read_only"] is True


def test_commands() -> None:
    plain = Layout(Path("/srv/fc")).vm(MACHINE.id)
    own = ["--api-sock", "api.sock", "--config-file", "vmm.json"]
    own += ["--log-path", "vmm.log", "--level", "Info"]
    bare = vmm_command(["/bin/firecracker"], plain)
    assert bare == ["/bin/firecracker", "--id", MACHINE.id, *own]
    scoped = vmm_command(["/bin/firecracker"], plain, scope=True)
    assert scoped[:6] == [
        "systemd-run",
        "--scope",
        "--quiet",
        "--collect",
        "--unit",
        f"fc-{MACHINE.id}",
    ]
    assert scoped[7:] == bare
    jail = Jail(jailer=Path("/bin/jailer"), uid=1_500_000_001)
    jailed = vmm_command(["/bin/firecracker"], plain, jail=jail, cgroup_version=1)
    assert jailed[:3] == ["/bin/jailer", "--id", MACHINE.id]
    assert jailed[jailed.index("--uid") + 1] == "1500000001"
    assert jailed[jailed.index("--chroot-base-dir") + 1] == f"/srv/fc/vms/{MACHINE.id}"
    assert jailed[jailed.index("--") + 1 :] == own


def test_no_two_vms_share_a_jail_uid() -> None:
    taken: set[int] = set()
    for _ in range(3):
        taken.add(choose_jail_uid(MACHINE.id, taken))
    assert len(taken) == 3
    assert all(uid >= 1_500_000_000 for uid in taken)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", b"", None),
        ("PATCH", "/vm", b'{"state":"Paused"}', None),
        ("PATCH", "/drives/rootfs", b'{"drive_id":"rootfs","rate_limiter":{}}', None),
        ("PATCH", "/drives/rootfs", b'{"drive_id":"rootfs","path_on_host":"/etc/shadow"}', 403),
        ("PATCH", "/drives/rootfs", b'{"path_on\\u005fhost":"/etc/shadow"}', 403),
        ("PATCH", "/drives/rootfs", b"[]", 403),
        ("PATCH", "/drives/rootfs", b"[" * 50_000, 400),
        ("PUT", "/drives/rootfs", b"{}", 403),
        ("PUT", "/snapshot/create", b"{}", 403),
        ("PUT", "/logger", b"{}", 403),
        ("DELETE", "/vm", b"", 405),
        ("GET", "/vm/../logger", b"", 404),
        ("GET", "//", b"", 404),
        ("GET", "/nope", b"", 404),
        ("PUT", "/mmds", b"x" * 60_000, 413),
    ],
)
def test_the_proxy_relays_only_what_is_harmless(
    method: str, path: str, body: bytes, status: int | None
) -> None:
    if status is None:
        proxy.check(method, path, body)
        return
    with pytest.raises(NexusError) as refused:
        proxy.check(method, path, body)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("facts", "cause", "stage"),
    [
        ({"exit_code": 0}, "guest_poweroff", None),
        (
            {"exit_code": None, "vmm_log": ["Firecracker exiting successfully."]},
            "guest_poweroff",
            None,
        ),
        ({"exit_code": 0, "vmm_log": ["Vmm is stopping. guest-reset"]}, "guest_reboot", None),
        ({"exit_code": 0, "vmm_log": ["Vmm is stopping. guest-shutdown"]}, "guest_poweroff", None),
        ({"exit_code": None}, "crashed", "run"),
        ({"exit_code": 1}, "crashed", "run"),
        ({"exit_code": -9}, "crashed", "run"),
        ({"exit_code": 1, "started": False}, "crashed", "boot"),
        ({"exit_code": 0, "stop_asked": True}, "stopped", None),
        ({"exit_code": -9, "stop_asked": True, "killed": True}, "killed", None),
    ],
)
def test_how_a_vmm_ended(facts: dict[str, object], cause: str, stage: str | None) -> None:
    default = {
        "started": True,
        "stop_asked": False,
        "killed": False,
        "vmm_log": [],
        "console": [],
    }
    ending = how_it_ended(**{**default, **facts})  # type: ignore[arg-type]
    assert ending.cause == cause
    assert (ending.error.stage if ending.error else None) == stage


def test_a_fault_is_told_in_the_vmms_own_words() -> None:
    ending = how_it_ended(
        started=False,
        stop_asked=False,
        killed=False,
        exit_code=1,
        vmm_log=[
            "2026-01-01T00:00:00 [x:main] RunWithApiError error: Failed to build MicroVM from "
            "Json: Configuration for VMM from one single json failed: Invalid JSON",
            "2026-01-01T00:00:00 [x:main] Firecracker exiting with error. exit_code=1",
        ],
        console=[],
    )
    assert ending.error is not None
    assert ending.error.stage == "configure"
    assert (ending.error.fault_message or "").startswith("Failed to build MicroVM")


@given(st.uuids().map(str), st.lists(st.integers(0, 1023), max_size=1000))
def test_the_subnet_is_free(installation: str, taken: list[int]) -> None:
    used = [ipaddress.IPv4Network((int(POOL[0]) + (n << 12), 20)) for n in set(taken)]
    chosen = choose_subnet(installation, used)
    assert chosen.subnet_of(POOL)
    assert not any(chosen.overlaps(other) for other in used)
    assert chosen == choose_subnet(installation, used)


def test_no_subnet_is_left() -> None:
    with pytest.raises(NexusError) as caught:
        choose_subnet("x", [ipaddress.IPv4Network("10.0.0.0/8")])
    assert "NEXUS_SUBNET" in (caught.value.suggestion or "")


def test_rules_are_one_transaction_on_one_table() -> None:
    home = Segment("fcbr0", "nat", ipaddress.IPv4Network("10.64.0.0/20"))
    text = text_of(Rules("nexus_0a", [home]))
    for family in ("bridge", "inet"):
        assert f"table {family} nexus_0a\ndelete table {family} nexus_0a\n" in text
    assert set(re.findall(r"^(?:delete )?table \w+ (\w+)", text, re.MULTILINE)) == {"nexus_0a"}
    assert "flush" not in text


def test_no_two_vms_have_one_tap_or_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("nexus.agent.nft.apply", told.append)
    first = Port("nx0", "br", "02:00:00:00:00:01", "10.0.0.2")
    firewall = Firewall("t", [])

    async def walk() -> None:
        firewall.know("one", [first])
        for other in (
            Port("nx0", "other", "02:00:00:00:00:02", "10.0.0.3"),
            Port("nx1", "br", "02:00:00:00:00:01", "10.0.0.3"),
        ):
            with pytest.raises(NetworkFailed, match="that of VM one already") as caught:
                await firewall.admit("two", [other])
            assert "make it again" in (caught.value.suggestion or "")
        assert "two" not in firewall.rules.ports
        assert told == []
        assert firewall.is_of_another("nx0", "two")
        # A MAC may be on another bridge too, and what was given back is free.
        await firewall.admit("two", [Port("nx1", "other", "02:00:00:00:00:01", "10.0.0.3")])
        await firewall.forget("one")
        assert not firewall.is_of_another("nx0", "two")
        await firewall.admit("tre", [first])
        # After a restart both may be known for a moment.
        firewall.know("four", [first])
        assert firewall.is_of_another("nx0", "four")
        await firewall.forget("four")
        assert firewall.is_of_another("nx0", "four")
        assert not firewall.is_of_another("nx0", "tre")

    anyio.run(walk)


def test_name_servers_on_loopback_are_no_use_to_guests(tmp_path: Path) -> None:
    stub, real = tmp_path / "a", tmp_path / "b"
    stub.write_text("nameserver 127.0.0.53\n")
    real.write_text("search x\nnameserver 9.9.9.9\nnameserver fe80::1\n")
    assert name_servers((stub, real)) == ["9.9.9.9"]
    assert name_servers((stub,)) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"AGENT_BIND": "0.0.0.0:9090"},
        {"AGENT_BIND": "192.0.2.1:9090"},
        {"AGENT_BIND": "127.0.0.1:9090"},
        {"AGENT_BIND": "[::]:9090"},
        {"AGENT_BIND": "nonsense"},
        {},
    ],
)
def test_nothing_is_served_without_authentication(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsInvalid):
        Settings.from_environment(environment).check_bind()


def test_loopback_is_served_with_a_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    settings = Settings.from_environment({"NEXUS_AGENT_TOKEN_FILE": str(token)})
    settings.check_bind()
    assert settings.token == "0123456789abcdef"
    public = {"NEXUS_AGENT_TOKEN_FILE": str(token), "AGENT_BIND": "0.0.0.0:9090"}
    with pytest.raises(SettingsInvalid):
        Settings.from_environment(public).check_bind()


@pytest.mark.parametrize("name", ["NEXUS_JAILER", "NEXUS_CAPTURE_IN_MEMORY"])
def test_a_switch_is_on_or_off(name: str) -> None:
    def both(environment: dict[str, str]) -> tuple[bool, bool]:
        settings = Settings.from_environment(environment)
        return settings.jail, settings.capture_in_memory

    assert both({}) == both({name: ""}) == (False, True)
    assert {both({name: "0"}), both({name: "1"})} > {(False, True)}
    with pytest.raises(SettingsInvalid, match=f"{name} is 1 or 0, not 'true'"):
        Settings.from_environment({name: "true"})


def test_logs_are_read_from_their_end(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"x" * (3 << 20) + b"\r\none\r\ntwo\r\nthr\xffee")
    chunk = read_log(log, "console", 2, None)
    assert chunk.lines == ["two", "thr�ee"]
    assert chunk.offset == log.stat().st_size
    with log.open("ab") as more:
        more.write(b"\nfour\n")
    assert read_log(log, "console", 10, chunk.offset).lines == ["", "four"]
    assert read_log(tmp_path / "none", "vmm", 10, None).lines == []


def test_what_a_vmm_puts_in_the_place_of_its_log_is_not_read(tmp_path: Path) -> None:
    secret, link, pipe = tmp_path / "secret", tmp_path / "vmm.log", tmp_path / "pipe"
    secret.write_text("of the host\n")
    link.symlink_to(secret)
    os.mkfifo(pipe)
    for log in (link, pipe):
        assert last_lines(log) == []
        assert read_log(log, "vmm", 10, None).lines == []


PANIC = "[   12.804425] Kernel panic - not syncing: "


def ending_of(console: list[str], **change: object) -> Ending:
    """How a VMM that said nothing wrong ended after this console."""
    facts: dict[str, object] = {
        "started": True,
        "stop_asked": False,
        "killed": False,
        "exit_code": 0,
        "vmm_log": [],
        "name": "web",
        **change,
    }
    return how_it_ended(console=console, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("console", "stage", "why"),
    [
        (
            [
                "nexus-initrd: the root device /dev/vdz did not appear within 10 s",
                f"{PANIC}Attempted to kill init! exitcode=0x00000100",
                "[   12.808576] Rebooting in 1 seconds..",
            ],
            "boot",
            "the root device /dev/vdz did not appear within 10 s (Attempted to kill init!",
        ),
        (
            [f"{PANIC}VFS: Unable to mount root fs on unknown-block(0,0)\r"],
            "boot",
            "VFS: Unable to mount root fs",
        ),
        (["Kernel panic - not syncing: No working init found.  Try"], "boot", "No working init"),
        (["[  9.1][    T1] Kernel panic - not syncing: sysrq triggered crash"], "run", "sysrq"),
        (
            ["nexus-guest ready", *["x"] * 9, f"{PANIC}Attempted to kill init!", "trace"],
            "run",
            "Attempted to kill init!",
        ),
        ([f"{PANIC}Out of memory and no killable processes..."], "run", "Out of memory"),
    ],
)
def test_a_panic_ends_a_vmm_as_cleanly_as_a_power_off(
    console: list[str], stage: str, why: str
) -> None:
    ending = ending_of(console)
    assert ending.cause == "guest_panic"
    assert ending.error is not None
    assert ending.error.stage == stage
    assert why in ending.error.message
    assert "nexus logs web" in (ending.error.suggestion or "")
    assert any("Kernel panic" in line for line in ending.error.log_tail)


@pytest.mark.parametrize(
    "console",
    [
        [],
        ["[   20.1] reboot: Power down"],
        ["somebody wrote: Kernel panic - not syncing: ha"],
        [f"{PANIC}told by dmesg in an earlier life", "[   20.1] reboot: Power down"],
        ["[    1.0] Kernel panic timeout is 1"],
    ],
)
def test_what_is_no_panic(console: list[str]) -> None:
    assert ending_of(console) == Ending("guest_poweroff")


def test_a_guest_that_panics_when_it_is_asked_to_stop_has_stopped() -> None:
    console = [f"{PANIC}x"]
    assert ending_of(console, stop_asked=True) == Ending("stopped")
    assert ending_of(console, killed=True) == Ending("killed")


@given(st.lists(st.text(max_size=60), max_size=30), st.sampled_from([0, 1, 152, -9, -31, None]))
def test_whatever_a_guest_writes_an_ending_is_found(console: list[str], code: int | None) -> None:
    ending = ending_of(console, exit_code=code)
    assert (ending.error is None) == (ending.cause == "guest_poweroff")
    if ending.error is not None:
        assert ending.error.suggestion
        assert len(ending.error.log_tail) <= 20


def test_a_killed_vmm_may_have_been_too_large() -> None:
    ending = ending_of([], exit_code=-9)
    assert ending.error is not None
    assert "dmesg" in (ending.error.suggestion or "")
    assert "nexus start web" in (ending.error.suggestion or "")


def test_only_this_boots_console_is_read(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text(f"{PANIC}of an earlier boot\n")
    offset = log.stat().st_size
    with log.open("a") as more:
        more.write("up\n")
    assert last_lines(log, since=offset) == ["up"]
    # A log that was cut off meanwhile begins anew.
    log.write_text("new\n")
    assert last_lines(log, since=offset) == ["new"]


def test_a_guest_may_not_be_larger_than_its_host() -> None:
    check_memory(4096, 4096)
    with pytest.raises(StageFailed) as caught:
        check_memory(4097, 4096)
    assert caught.value.error.stage == "configure"
    head = "Filename Type Size Used Priority\n"
    assert swap_mib(head) == 0
    assert swap_mib(f"{head}/dev/vdb partition 2097148 0 -2\n/a\\040b file 1024 0 -3\n") == 2048


def test_each_of_several_nics_answers_for_itself() -> None:
    other = NIC.model_copy(update={"iface": "eth1", "gateway": None, "dns": []})
    both = kernel_args(MACHINE.model_copy(update={"nics": [NIC, other]}))
    assert "nexus.ip=eth1,06:00:0a:40:00:05,10.64.0.5/20, " in both
    assert "sysctl.net.ipv4.conf.all.arp_ignore=1" in both
    assert "sysctl" not in kernel_args(MACHINE)
