"""Networks and forwards on the command line."""

import pytest

from tests.cli.calling import call, done, done_json
from tests.client.wire import Wire


def test_a_life_of_a_network(wire: Wire) -> None:
    made = done(wire, "network", "create", "lab", "--kind", "isolated", "--cidr", "10.9.0.0/24")
    assert made.splitlines()[1].split()[:4] == ["lab", "isolated", "ready", "10.9.0.0/24"]
    done(wire, "network", "set", "lab", "--isolate-vms", "--dns", "9.9.9.9")
    assert wire.bodies == [
        {"name": "lab", "kind": "isolated", "cidr": "10.9.0.0/24", "isolate_vms": False},
        {"isolate_vms": True, "dns": ["9.9.9.9"]},
    ]
    done(wire, "network", "create", "x", "--cidr", "10.9.0.0/24", "--dhcp", "--reserve", "10.9.0.7")
    done(wire, "network", "set", "x", "--no-dhcp", "--reserve", "none", "--allow", "tcp/5000")
    assert wire.bodies[2]["dhcp"] is True
    assert wire.bodies[2]["reserved"] == ["10.9.0.7"]
    assert wire.bodies[3] == {"dhcp": False, "reserved": [], "allow": ["tcp/5000"]}
    assert done(wire, "network", "ls", "-o", "name") == "lab\n"
    assert done_json(wire, "network", "show", "lab", "-o", "json")["vms"][0]["ip"] == "10.9.0.2"
    assert "10.9.0.2" in done(wire, "network", "show", "lab")
    assert done(wire, "network", "rm", "lab") == "lab\n"
    assert call(wire, "network", "rm", "busy").returncode == 1


def test_a_network_that_cannot_be_is_a_failure(wire: Wire) -> None:
    options = ["--kind", "bridged", "--uplink", "eth9", "--cidr", "10.9.0.0/24"]
    ended = call(wire, "network", "create", "wan", *options)
    assert ended.returncode == 1
    assert b"no such interface" in ended.stderr
    assert b"try: ip -br link" in ended.stderr


def test_forwards(wire: Wire) -> None:
    shown = done(wire, "forward", "add", "web", "8080:80", "5353:53/udp")
    assert "8080/tcp" in shown
    assert "10.9.0.2:53" in shown
    assert done(wire, "forward", "ls", "web", "-o", "name") == "8080/tcp\n5353/udp\n"
    assert done(wire, "forward", "rm", "web", "5353/udp") == "5353/udp\n"
    assert [each.host_port for each in wire.forwards] == [8080]
    assert call(wire, "forward", "rm", "web", "9").returncode == 3


def test_the_doctor(wire: Wire) -> None:
    done(wire, "run", "busybox", "--name", "good")
    done(wire, "run", "busybox", "--name", "bad")
    assert "ok  host  -    the host answers" in done(wire, "network", "doctor", "good")
    assert done_json(wire, "network", "doctor", "good", "-o", "json")["item"]["healthy"] is True
    ended = call(wire, "network", "doctor", "bad")
    assert ended.returncode == 1
    assert ended.stdout.decode().splitlines()[2:] == [
        "BAD  tap   eth0  nx1 is down",
        "",
        "try:",
        "  ip link set nx1 up",
    ]
    assert call(wire, "network", "doctor", "nobody").returncode == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["network", "create", "x", "--cidr", "10.9.0.1/24"],
        ["network", "create", "x", "--kind", "bridged"],
        ["network", "set", "x"],
        ["forward", "add", "web", "80"],
        ["forward", "add", "web", "0:80"],
        ["forward", "rm", "web", "x"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(wire: Wire, arguments: list[str]) -> None:
    assert call(wire, *arguments).returncode == 2
